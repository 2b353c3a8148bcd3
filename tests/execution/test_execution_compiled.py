"""The compiled kernels against torch alone, and what happens without them."""

import logging
import sys

import pytest
import torch
from execution_runs import assert_same, block_of, image, step
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from repblocks.algebra.axis import Axis
from repblocks.execution import compiled, rows_in_torch, rows_on_cpu
from repblocks.execution.convolving import convolve
from repblocks.execution.flat_images import flat_images
from repblocks.execution.weight_space import run_in_weight_space
from repblocks.execution.window_moments import Windows

AXES = [
    (Axis(3, 1, 1, 1), Axis(3, 1, 1, 1)),
    (Axis(5, 1, 2, 2), Axis(5, 1, 2, 2)),
    (Axis(3, 1, 0, 0), Axis(5, 1, 4, 1)),
    (Axis(3, 1, 4, 3), Axis(2, 1, 1, 2)),
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
    truth = windows.write(weight @ windows.read(x), x) + other + of_x
    found = compiled.window_gradient(x, weight, other, of_x, axes)
    if found is None:
        assert layout is torch.channels_last
        return
    assert torch.allclose(found, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_convolutions_are_those_of_torch(axes, size):
    x, centre = inputs(size, LAYOUTS[0])
    weight = image(4, 1, *(axis.size for axis in axes)).requires_grad_()
    bias, read = image(4), x.clone().requires_grad_()
    truth = convolve(read, weight, bias, axes, 4)
    g = image(*truth.shape)
    of_x, of_weight = torch.autograd.grad(truth, (read, weight), g)
    y = compiled.convolution(x, weight, bias, axes)
    found, summed = compiled.convolution_products(g, x, centre, axes)
    taps = Windows(4, axes).mask(x)  # of zeros around the image, nothing is taken
    border = torch.einsum("cp,kp->ck", summed.flatten(1), taps[0])
    found = found + centre.unsqueeze(1) * border
    assert torch.allclose(y, truth, rtol=1e-12, atol=1e-12)
    assert torch.allclose(found, of_weight.flatten(1), rtol=1e-12, atol=1e-12)
    assert torch.allclose(summed, g.sum(0), rtol=1e-12, atol=1e-12)
    given = compiled.convolution_gradient(g, x, weight, axes)
    assert torch.allclose(given, of_x, rtol=1e-12, atol=1e-12)


def frozen_block():
    block = block_of("mobileone", 4, 4, 3, groups=4)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return block


def test_a_frozen_block_can_be_differentiated_twice():
    block, x = frozen_block(), image(2, 4, 9, 8).requires_grad_()
    block.execution = "weight_space"
    assert type(block(x).grad_fn.next_functions[0][0]).__name__ == "_DepthwiseBackward"
    found = []
    for execution in ("weight_space", "branchwise"):
        block.execution = execution
        given = [x, *block.parameters()]
        first = torch.autograd.grad(block(x).sin().sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), given)
        found.append([*first, *second])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_a_frozen_block_has_a_forward_derivative_and_the_dtype_of_autocast():
    block, x = frozen_block(), image(2, 4, 9, 8)
    block.execution = "weight_space"
    with torch.no_grad(), forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(block(forward_ad.make_dual(x, torch.ones_like(x))))
    assert torch.allclose(y, block(x), rtol=1e-12)
    assert tangent is not None
    block = block.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert block.branches is not None
        assert run_in_weight_space(block.branches, x.float()).dtype is torch.bfloat16


def test_what_is_recorded_or_batched_is_done_by_torch():
    block, x = frozen_block(), image(2, 4, 9, 8, seed=1)
    block.execution = "weight_space"
    with torch.no_grad():
        recorded = make_fx(block)(image(2, 4, 9, 8))
        assert torch.allclose(recorded(x), block(x), rtol=1e-12)
    with FlopCounterMode(display=False) as counter:
        block(x)
    assert counter.get_total_flops() == 2 * 2 * 4 * 9 * 72
    read, gradients = x.requires_grad_(), image(3, 2, 4, 9, 8)
    (found,) = torch.autograd.grad(block(read), read, gradients, is_grads_batched=True)
    truth = [torch.autograd.grad(block(read), read, g)[0] for g in gradients]
    assert torch.allclose(found, torch.stack(truth), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(5, 1), (1, 1), (1, 6)], ids=str)
def test_a_stride_may_skip_all_that_a_phase_holds(size):
    block, x = block_of("mobileone", 4, 4, 3, 2, groups=4), image(5, 4, *size)
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))
    axes = (Axis(1, 4, 1, 1),) * 2
    assert torch.equal(compiled.window_products(x, x[0, :, 0, 0], axes)[0], torch.zeros(4, 1, 1))


@pytest.mark.parametrize("inputs", [0, 1, 2])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 2, 1, 9), (1, 4, 6, 6), (2, 3, 3, 3)], ids=str)
def test_rows_are_those_of_torch(shape, affine, inputs):
    groups, branches, outputs, depth = shape
    inputs = inputs if outputs == depth else 0
    rows, mean, offset = image(*shape), image(groups, depth), image(groups, depth)
    half = image(groups, depth, depth)
    covariance = half @ half.transpose(1, 2)
    product = (rows.flatten(1, 2) @ covariance).view_as(rows)
    vector = (branches + inputs, groups * outputs)
    scales = [*image(*vector)] if affine else []
    of_rows, of_kernel = image(*shape), image(groups, outputs, depth)
    of_means, of_spread, of_shift = image(*vector), image(*vector), image(vector[1])
    found = []
    for module in (rows_in_torch, rows_on_cpu):
        *own, kept = module.statistics(rows, product, mean, covariance, offset, inputs, 1.25)
        given = rows, product, mean, kept, of_rows, of_means, of_spread
        own += module.statistics_gradient(*given)
        own += module.merged(rows, *own[:2], scales, scales, 1e-5)
        given = rows, own[0], *own[-2:], of_kernel, of_shift, len(scales)
        *gradients, biases = module.merged_gradient(*given)
        found.append([kept.double(), *own, *gradients, *biases])
    assert rows_on_cpu.serves(rows, mean)
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-11) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("images", [1, 40, 70])
def test_images_that_do_not_fill_a_stack_are_the_last(images):
    x, axes = image(images, 2, 9, 9), (Axis(3, low=1, high=1),) * 2
    assert images % flat_images(images, (9, 9), axes).stack or images == 1
    windows, centre = Windows(2, axes), x[:1].mean((0, 2, 3))
    gram, summed = compiled.window_products(x, centre, axes)
    taps = windows.read(windows.centred(x, centre))
    assert torch.allclose(gram, taps @ taps.transpose(1, 2), rtol=1e-12, atol=1e-11)
    assert torch.allclose(summed, windows.centred(x, centre).sum(0), rtol=1e-12, atol=1e-11)
    weight = gram + 1
    truth = windows.write(weight @ windows.read(x), x) + x
    found = compiled.window_gradient(x, weight, torch.zeros_like(x[:1]), x.clone(), axes)
    assert torch.allclose(found, truth, rtol=1e-12, atol=1e-11)
    kernel = image(2, 1, 3, 3)
    y = compiled.convolution(x, kernel, torch.zeros(2, dtype=x.dtype), axes)
    assert torch.allclose(y, convolve(x, kernel, None, axes, 2), rtol=1e-12, atol=1e-12)


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
        (image(3, 4, 2, 9), (Axis(3), Axis(3))),
    ],
    ids=["1-d", "half", "crop", "device", "no output"],
)
def test_what_does_not_suit_them_is_left_to_torch(x, axes):
    assert compiled.window_products(x, x[0], axes) is None
    assert compiled.convolution(x, x[:1].flatten(2), x[0], axes) is None
    assert compiled.convolution_products(x, x, x[0], axes) is None


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
