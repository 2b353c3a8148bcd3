"""Inputs far from zero, in float32 and under autocast: what both executions lose to float64."""

import pytest
import torch
from execution_runs import block_of, distance, image, step

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


@pytest.mark.parametrize("ratio", [0, 10, 100])
@pytest.mark.parametrize("case", CASES)
def test_autocast_is_as_exact_as_the_branches(case, ratio):
    found = errors(case, ratio, 20, torch.bfloat16)
    for merged, branchwise in zip(found["merged"], found["branchwise"], strict=True):
        assert merged < 2 * branchwise + 1e-3
