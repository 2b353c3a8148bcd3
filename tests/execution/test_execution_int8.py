"""Quantization-aware training: kernels and inputs are rounded as INT8 has them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repblocks.algebra.normalization import is_batch_norm
from repblocks.blocks import create_block
from repblocks.execution.int8 import rounded_input, rounded_weight


def frozen(name: str, **options: object) -> nn.Module:
    """A block whose norms have statistics of their own, and keep them."""
    torch.manual_seed(0)
    block = create_block(name, 6, 8, 3, execution="int8", **options)
    with torch.no_grad():
        for module in block.modules():
            if is_batch_norm(module):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.eval()
    return block


def test_the_kernel_has_255_steps_for_each_output_and_0_is_one_of_them():
    weight = torch.randn(5, 4, 3, 3) * torch.tensor([1e-3, 1, 10, 1e3, 0]).view(5, 1, 1, 1)
    weight.requires_grad_()
    rounded = rounded_weight(weight)
    steps = rounded / weight.detach().abs().flatten(1).amax(1).clamp_min(1e-30).view(5, 1, 1, 1)
    assert torch.allclose(steps * 127, (steps * 127).round(), atol=1e-3)
    assert (steps[:4] * 127).abs().flatten(1).amax(1).tolist() == pytest.approx([127] * 4)
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_inputs_keep_their_extremes_and_0():
    x = torch.cat([torch.linspace(-1, 3, 1001), torch.zeros(1)])
    rounded = rounded_input(x)
    assert len(rounded.unique()) == 256
    assert rounded[-1] == 0
    assert (rounded - x).abs().max() <= 4 / 255 / 2 * 1.01
    assert torch.equal(rounded_input(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("name", ["plain", "repvgg", "qarepvgg", "mobileone", "acb", "dbb"])
def test_branches_train_through_the_rounded_kernel_that_is_deployed(name):
    block, x = frozen(name), torch.randn(2, 6, 9, 9)
    found = block(x)
    block.eval()
    kernel = block.equivalent_kernel()
    block.train()
    rounded = nn.functional.conv2d(
        rounded_input(x), rounded_weight(kernel.weight), kernel.bias, padding=1
    )
    assert torch.allclose(found, rounded.relu(), atol=1e-5)
    found.square().sum().backward()
    weights = [p for p in block.parameters() if p.ndim == 4]
    assert weights
    assert all(p.grad.abs().sum() > 0 for p in weights)


def test_norms_with_statistics_of_the_batch_are_not_rounded():
    block = create_block("repvgg", 4, 4, 3, execution="int8")
    with pytest.warns(UserWarning, match="execution=int8 runs branchwise here: a BatchNorm uses"):
        block(torch.randn(2, 4, 5, 5))


def test_bfloat16_is_rounded_in_float32():
    block, x = frozen("repvgg"), torch.randn(2, 6, 9, 9)
    truth = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), truth, atol=0.05 * truth.abs().max().item())
