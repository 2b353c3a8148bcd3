"""Two processes with gloo and synchronised norms against one on the joint batch, in float64."""

import pytest
import torch
from execution_runs import block_of, image
from torch import distributed, multiprocessing, nn

BLOCKS = [("mobileone", 1), ("mobileone", 3), ("dbb", 3)]
#: Block, its kernel, execution, and the images of the first process.
CASES = [(*block, "merged", images) for block in BLOCKS for images in (4, 9)]
# The second process has too few positions to merge by itself.
CASES += [("dbb", 3, "auto", 8), ("mobileone", 1, "auto", 4)]


def build(case):
    name, size, execution, _ = case
    groups = 8 if (name, size) == ("mobileone", 3) else 1
    return block_of(name, 8, 8, size, groups=groups, execution=execution)


def batch():
    # Means that differ from process to process: the centres of both differ, too.
    x = image(9, 8, 7, 6)
    return x + torch.linspace(-3, 3, 9, dtype=x.dtype).view(-1, 1, 1, 1)


def run(rank, case, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    block = nn.SyncBatchNorm.convert_sync_batchnorm(build(case))
    mine = slice(case[3]) if rank == 0 else slice(case[3], None)
    x = batch()[mine]
    x.requires_grad_()
    y = block(x)
    weights = torch.linspace(-1, 1, batch().numel(), dtype=y.dtype).view(batch().shape).sin()
    (y * weights[mine]).sum().backward()
    for parameter in block.parameters():
        distributed.all_reduce(parameter.grad)
    gradients = {key: p.grad for key, p in block.named_parameters()}
    buffers = dict(block.named_buffers())
    torch.save((y.detach(), x.grad, gradients, buffers), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_are_one(case, tmp_path):
    multiprocessing.start_processes(run, (case, tmp_path), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    block, x = build(case), batch().requires_grad_()
    block.execution = "branchwise"
    y = block(x)
    (y * torch.linspace(-1, 1, x.numel(), dtype=y.dtype).view(x.shape).sin()).sum().backward()
    assert torch.allclose(torch.cat([first[0], second[0]]), y, rtol=1e-12, atol=1e-12)
    assert torch.allclose(torch.cat([first[1], second[1]]), x.grad, rtol=1e-10, atol=1e-12)
    largest = max(p.grad.abs().max() for p in block.parameters())
    for key, parameter in block.named_parameters():
        for rank in (first, second):
            assert (rank[2][key] - parameter.grad).abs().max() < 1e-10 * largest, key
    for key, value in block.named_buffers():
        for rank in (first, second):
            assert torch.allclose(rank[3][key].double(), value.double(), rtol=1e-12), key
