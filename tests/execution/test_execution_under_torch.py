"""The merged execution under the tools that training uses."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from execution_runs import assert_same, block_of, image, step
from torch import nn
from torch.utils.checkpoint import checkpoint

CASES = [
    ("mobileone", (8, 8, 1), {}),
    ("mobileone", (8, 8, 3), {"groups": 8}),
    ("repvgg", (8, 8, 3), {}),
    ("dbb", (8, 8, 3), {}),
]
blocks = pytest.mark.parametrize(("name", "shape", "options"), CASES, ids=str)


@blocks
def test_a_block_that_is_called_twice(name, shape, options):
    block, x = block_of(name, *shape, **options), image(3, 8, 9, 9)
    assert_same(step(block, x, "merged", calls=2), step(block, x, "branchwise", calls=2))


class Checkpointed(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        self.block.execution = self.execution
        return checkpoint(self.block, x, use_reentrant=False)


@blocks
def test_gradients_have_memory_of_their_own(name, shape, options):
    block, x = block_of(name, *shape, **options), image(3, 8, 9, 9)
    found = step(block, x, "merged").of_weights
    before = {key: gradient.clone() for key, gradient in found.items()}
    for gradient in found.values():
        gradient.mul_(2)  # as clipping does
    assert all(torch.equal(found[key], 2 * value) for key, value in before.items())


@blocks
def test_gradient_checkpointing(name, shape, options):
    block, x = Checkpointed(block_of(name, *shape, **options)), image(3, 8, 9, 9)
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))


@blocks
def test_weights_that_do_not_train(name, shape, options):
    block, x = block_of(name, *shape, **options), image(3, 8, 9, 9)
    block.execution = "merged"
    block.requires_grad_(False)
    x.requires_grad_()
    block(x).sum().backward()
    assert x.grad.isfinite().all()
    twin = copy.deepcopy(block)
    with torch.no_grad():
        assert torch.equal(twin(x), block(x))


@blocks
def test_images_that_need_no_gradient(name, shape, options):
    block, x = block_of(name, *shape, **options), image(3, 8, 9, 9)
    gradients = {}
    for execution in ("branchwise", "merged"):
        twin = copy.deepcopy(block)
        twin.execution = execution
        twin(x).square().sum().backward()
        gradients[execution] = [p.grad for p in twin.parameters()]
    largest = max(g.abs().max() for g in gradients["branchwise"])
    for merged, truth in zip(*gradients.values(), strict=True):
        assert (merged - truth).abs().max() < 1e-10 * largest


def saved_bytes(block, x):
    """Count what a forward pass keeps for the backward one, the input and the weights aside."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = block(x)
    own = [x, *block.parameters(), *block.buffers()]
    total = sum(kept.values()) - sum(kept.get(t.untyped_storage().data_ptr(), 0) for t in own)
    return total / (y.numel() * y.element_size())


@pytest.mark.parametrize(
    ("name", "shape", "options", "most"),
    [
        ("mobileone", (32, 32, 1), {}, 1.1),
        ("mobileone", (32, 32, 3), {"groups": 32}, 1.1),
        ("repvgg", (32, 32, 3), {}, 2.1),
        ("dbb", (32, 32, 3), {}, 1.7),
    ],
)
def test_what_is_kept_for_the_backward_pass(name, shape, options, most):
    block, x = block_of(name, *shape, **options), image(8, 32, 28, 28).requires_grad_()
    kept = {}
    for execution in ("branchwise", "merged"):
        block.execution = execution
        kept[execution] = saved_bytes(block, x)
    assert kept["merged"] < most < 2.5 < kept["branchwise"]


class Compiled(nn.Module):
    """A block that is compiled into one graph, where it is: a copy of a compiled one is not."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        self.block.execution = self.execution
        return torch.compile(self.block, backend="aot_eager", fullgraph=True)(x)


@blocks
def test_compiled_blocks_are_the_same(name, shape, options):
    block, x = block_of(name, *shape, **options), image(3, 8, 9, 9)
    torch.compiler.reset()
    with torch.compiler.set_stance("force_eager"):
        truth = step(Compiled(block), x, "merged")
    assert_same(step(Compiled(block), x, "merged"), truth)


def test_two_processes_share_their_statistics():
    runs = Path(__file__).with_name("execution_ddp_runs.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(runs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout
