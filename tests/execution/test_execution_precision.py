"""Inputs far from zero, in float32 and under autocast: what both executions lose to float64."""

import pytest
import torch
from execution_runs import block_of, distance, image, step
from torch import nn

from repblocks.algebra.axis import Axis
from repblocks.execution.window_moments import Windows

CASES = {
    "pointwise": ("mobileone", (8, 8, 1), {}),
    "depthwise": ("mobileone", (8, 8, 3), {"groups": 8}),
    "depthwise 5, strided": ("mobileone", (8, 8, 5, 2), {"groups": 8}),
    "dense": ("repvgg", (8, 8, 3), {}),
    "nested": ("dbb", (8, 8, 3), {}),
}
SIZES = [5, 20]  # in the smaller one, half of all windows reach over the border


def errors(case, ratio, size, dtype):
    name, shape, options = CASES[case]
    block = block_of(name, *shape, activation=None, **options)
    x = (image(8, 8, size, size) + ratio).to(dtype)
    truth = step(block, x.double(), "branchwise")
    found = {}
    for execution in ("branchwise", "merged"):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            got = step(block.float(), x, execution)
        found[execution] = [
            distance(got.output, truth.output),
            distance(got.of_input, truth.of_input),
            max(distance(got.buffers[k], v) for k, v in truth.buffers.items()),
        ]
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratio", [0, 10, 100, 1000])
@pytest.mark.parametrize("case", CASES)
def test_float32_is_as_exact_as_the_branches(case, ratio, size):
    found = errors(case, ratio, size, torch.float32)
    for merged, branchwise in zip(found["merged"], found["branchwise"], strict=True):
        assert merged < 10 * branchwise + 2e-6


@pytest.mark.parametrize("ratio", [0, 10, 100, 1000])
@pytest.mark.parametrize("case", CASES)
def test_autocast_is_as_exact_as_the_branches(case, ratio):
    found = errors(case, ratio, 20, torch.bfloat16)
    for merged, branchwise in zip(found["merged"], found["branchwise"], strict=True):
        assert merged < 2 * branchwise + 1e-3


#: Error of a variance in parts of the precision times the sum of the squares of its terms.
CANCELLED = {"pointwise": 2, "dense": 2, "nested": 4}


@pytest.mark.parametrize("ratio", [1, 100, 1000, 10000])
@pytest.mark.parametrize("case", CANCELLED)
def test_what_all_channels_share_cancels_with_the_square_of_its_size(case, ratio):
    name, shape, options = CASES[case]
    block = block_of(name, *shape, activation=None, **options)
    with torch.no_grad():
        for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
            conv.weight -= conv.weight.mean((1, 2, 3), keepdim=True)
    x = (image(16, 8, 32, 32) + ratio * image(16, 1, 32, 32, seed=5)).float()
    truth = step(block, x.double(), "branchwise")
    eps = torch.finfo(torch.float32).eps
    lost = {"branchwise": eps * ratio, "merged": CANCELLED[case] * eps * ratio**2}
    for execution, part in lost.items():
        found = step(block.float(), x, execution)
        variances = [value for key, value in found.buffers.items() if "var" in key]
        assert min(value.min() for value in variances) >= 0
        tensors = [found.output, found.of_input, *found.of_weights.values(), *variances]
        assert all(tensor.isfinite().all() for tensor in tensors)
        if part < 1:  # else nothing is left
            assert distance(found.output, truth.output) < part + 2e-6
            assert distance(found.of_input, truth.of_input) < part + 2e-6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("groups", [1, 8])
def test_products_of_many_positions_keep_their_digits(groups, layout):
    x = image(24, 8, 40, 40, dtype=torch.float32).to(memory_format=layout)
    reading = Windows(groups, (Axis(3, 1, 1, 1),) * 2)
    assert distance(reading.gram(x), reading.gram(x.double())) < (2.5e-6 if groups > 1 else 5e-7)
