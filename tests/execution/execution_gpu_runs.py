"""The kernels for a GPU, in Triton's interpreter on the CPU, against torch in float64.

To be run with TRITON_INTERPRET=1, set before anything imports Triton.
"""

import pytest
import torch
from execution_runs import assert_same, block_of, distance, image, step

from repblocks.algebra.axis import Axis
from repblocks.execution import on_gpu
from repblocks.execution.window_moments import Windows

AXES = [
    (Axis(3, 1, 1, 1), Axis(3, 1, 1, 1)),
    (Axis(3, 2, 1, 1), Axis(3, 2, 1, 1)),
    (Axis(5, 1, 2, 2), Axis(5, 1, 2, 2)),
    (Axis(5, 2, 2, 2), Axis(5, 2, 2, 2)),
    (Axis(3, 2, 0, 0), Axis(2, 3, 1, 4)),
    (Axis(3, 1, 2, 2, 2), Axis(3, 1, -1, 0)),
]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
#: What rounding to it loses of a result.
EXACT = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# In a window of 5 x 5 taps, all of an image of 5 x 5 is border.
CASES = [(axes, (5, 5), "nhwc", torch.float32) for axes in AXES]
CASES += [(axes, (6, 7), "nchw", torch.float32) for axes in AXES]
CASES += [(AXES[1], (5, 5), layout, dtype) for layout in LAYOUTS for dtype in EXACT]

windows_of_inputs = pytest.mark.parametrize(("axes", "size", "layout", "dtype"), CASES, ids=str)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(on_gpu, "DEVICES", ("cpu",))


def inputs(size, layout, dtype):
    x = (image(2, 2, *size) + 1).to(dtype).to(memory_format=LAYOUTS[layout])
    return x, x[:1].float().mean((0, 2, 3))


@windows_of_inputs
def test_products_are_those_of_torch(axes, size, layout, dtype):
    (x, centre), windows = inputs(size, layout, dtype), Windows(2, axes)
    gram, summed = on_gpu.window_products(x, centre, axes)
    assert gram.dtype is summed.dtype is torch.float32
    centred = windows.centred(x.double(), centre.double())
    taps = windows.read(centred)
    # The inputs are what they are in their own dtype: only float32 rounds here.
    assert distance(gram, taps @ taps.transpose(1, 2)) < 2e-6
    assert distance(summed, centred.sum(0, keepdim=True)) < 2e-6


@windows_of_inputs
def test_gradients_are_those_of_torch(axes, size, layout, dtype):
    (x, _), windows = inputs(size, layout, dtype), Windows(2, axes)
    half, other = image(2, windows.taps, windows.taps, dtype=torch.float32), image(1, 2, *size)
    weight, of_x = half + half.transpose(1, 2), image(*x.shape).to(dtype)
    found = on_gpu.window_gradient(x, weight, other.float(), of_x, axes)
    assert found.dtype is dtype
    assert found.stride() == x.stride()
    written = windows.write(weight.double() @ windows.read(x.double()), x.double())
    assert distance(found, written + other + of_x.double()) < EXACT[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_training_step_is_that_of_the_branches(stride, dtype):
    block, x = block_of("mobileone", 2, 2, 3, stride, groups=2, activation=None), image(2, 2, 7, 8)
    truth = step(block, x, "branchwise")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = step(block.float(), x.to(dtype), "merged")
    assert_same(found, truth, EXACT[dtype] * 5, EXACT[dtype] * 10)
