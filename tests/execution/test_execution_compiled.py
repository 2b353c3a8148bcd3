"""The compiled kernels against torch alone, and what happens without them."""

import logging
import sys

import pytest
import torch
from execution_runs import assert_same, block_of, image, step

from repblocks.algebra.axis import Axis
from repblocks.execution import compiled
from repblocks.execution.window_moments import Windows

AXES = [
    (Axis(3, 1, 1, 1), Axis(3, 1, 1, 1)),
    (Axis(5, 1, 2, 2), Axis(5, 1, 2, 2)),
    (Axis(3, 1, 0, 0), Axis(5, 1, 4, 1)),
    (Axis(3, 2, 1, 1), Axis(3, 2, 1, 1)),
    (Axis(5, 2, 2, 2), Axis(5, 2, 2, 2)),
    (Axis(3, 2, 0, 0), Axis(2, 3, 1, 4)),
    (Axis(3, 1, 2, 2, 2), Axis(3, 2, 1, 1)),
]
SIZES = [(9, 12), (6, 5), (5, 5)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def without(monkeypatch):
    """Make the kernels unavailable."""
    monkeypatch.setattr(compiled, "_kernels", lambda: None)


def inputs(size, layout, dtype=torch.float64):
    x = image(3, 4, *size, dtype=dtype).to(memory_format=layout)
    return x, x[:1].mean((0, 2, 3))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_products_are_those_of_torch(axes, size, layout):
    (x, centre), windows = inputs(size, layout), Windows(4, axes)
    gram, summed = compiled.window_products(x, centre, axes)
    taps = windows.read(windows.centred(x, centre))
    assert torch.allclose(gram, taps @ taps.transpose(1, 2), rtol=1e-12, atol=1e-12)
    assert torch.allclose(summed, windows.centred(x, centre).sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_gradients_are_those_of_torch(axes, size, layout):
    (x, _), windows = inputs(size, layout), Windows(4, axes)
    half, other, of_x = image(4, windows.taps, windows.taps), image(1, 4, *size), image(*x.shape)
    weight = half + half.transpose(1, 2)
    found = compiled.window_gradient(x, weight, other, of_x, axes)
    if found is None:
        assert layout is torch.channels_last
        return
    truth = windows.write(weight @ windows.read(x), x) + other + of_x
    assert torch.allclose(found, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [2, 7])
def test_threads_share_the_channels(threads):
    (x, centre), axes = inputs((9, 12), LAYOUTS[0]), AXES[0]
    one, before = compiled.window_products(x, centre, axes), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        several = compiled.window_products(x, centre, axes)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, one, several))


@pytest.mark.parametrize(
    ("x", "axes"),
    [
        (image(3, 4, 9), (Axis(3),)),
        (image(3, 4, 9, 9).half(), AXES[0]),
        (image(3, 4, 9, 9), (Axis(3, low=-1), Axis(3))),
        (image(3, 4, 9, 9).to("meta"), AXES[0]),
    ],
    ids=["1-d", "half", "crop", "device"],
)
def test_what_does_not_suit_them_is_left_to_torch(x, axes):
    assert compiled.window_products(x, x[0], axes) is None


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 3, 2), (8, 8, 5), (8, 8, 5, 2)], ids=str)
@pytest.mark.usefixtures("without")
def test_torch_alone_computes_the_same(shape):
    block, x = block_of("mobileone", *shape, groups=8), image(3, 8, 9, 11)
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))


def test_their_absence_is_told_once(monkeypatch, caplog):
    compiled._kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "repblocks.execution.compiled_lags", None)
    monkeypatch.delattr("repblocks.execution.compiled_lags", raising=False)
    with caplog.at_level(logging.INFO):
        (x, centre), axes = inputs((9, 12), LAYOUTS[0]), AXES[0]
        for _ in range(2):
            assert compiled.window_products(x, centre, axes) is None
    (line,) = caplog.messages
    assert "repblocks[kernels]" in line
    compiled._kernels.cache_clear()
