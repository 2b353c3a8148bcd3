"""The kernels for a GPU against torch in float64: on one, or in Triton's interpreter.

The latter needs TRITON_INTERPRET=1, set before anything imports Triton.
"""

import pytest
import torch
import triton
import triton.language as tl
from execution_runs import Step, assert_same, block_of, distance, image, step, with_shared_numbers
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from repblocks.algebra.axis import Axis
from repblocks.execution import (
    channels_on_gpu,
    dispatch,
    normed_sum,
    on_gpu,
    rows_in_torch,
    rows_on_gpu,
    triton_kernels,
    triton_moments,
)
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
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: The interpreter is slow: it gets each case once, in one layout and dtype or another.
EACH = [("nchw", torch.float32), ("nhwc", torch.bfloat16), ("nhwc", torch.float32)]
EACH += [("nchw", torch.bfloat16), ("nhwc", torch.float16)]


def each(cases):
    """Give every case with every layout and dtype, or with one of them in turn."""
    if DEVICE == "cuda":
        return [(*case, *kind) for case in cases for kind in EACH[:4]]
    return [(*case, *EACH[number % 4]) for number, case in enumerate(cases)]


# In a window of 5 x 5 taps, all of an image of 4 x 4 is border.
CASES = each([(axes, size) for axes, size in zip(AXES, [(5, 5), (6, 7), (4, 4)] * 2, strict=True)])
CASES += [(AXES[1], (5, 5), *kind) for kind in EACH]

windows_of_inputs = pytest.mark.parametrize(("axes", "size", "layout", "dtype"), CASES, ids=str)


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch):
    monkeypatch.setattr(triton_kernels, "DEVICES", (DEVICE,))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for name in ("may_pay", "one_pass_pays"):
        monkeypatch.setattr(dispatch, name, lambda _: True)


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """Let the interpreter, which holds bfloat16 as whole numbers, multiply what they stand for."""
    if DEVICE == "cuda":
        return
    create_dot = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        wide = (handle.data.astype("uint32") << 16).view("float32")
        return TensorHandle(wide, tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: create_dot(self, widened(a), widened(b), *rest),
    )


def inputs(size, layout, dtype):
    x = (image(2, 2, *size) + 1).to(DEVICE, dtype).to(memory_format=LAYOUTS[layout])
    return x, x[:1].float().mean((0, 2, 3))


@windows_of_inputs
def test_moments_are_those_of_torch(axes, size, layout, dtype):
    (x, centre), windows = inputs(size, layout, dtype), Windows(2, axes)
    mask = windows.mask(x)
    away = mask - mask.mean(2, keepdim=True)
    border = away @ away.transpose(1, 2) / mask.shape[2]
    given = mask.mean(2).float(), border.float()
    mean, covariance = on_gpu.window_moments(x, centre, axes, *given)
    assert mean.dtype is covariance.dtype is torch.float32
    taps = windows.read(x.double())
    truth = taps.mean(2)
    # The inputs are what they are in their own dtype: only float32 rounds here.
    assert distance(mean.double() + windows.offset(x.double(), centre.double()), truth) < 2e-6
    taps -= truth.unsqueeze(2)
    assert distance(covariance, taps @ taps.transpose(1, 2) / taps.shape[2]) < 2e-6


@windows_of_inputs
def test_gradients_are_those_of_torch(axes, size, layout, dtype):
    (x, _), windows = inputs(size, layout, dtype), Windows(2, axes)
    half = image(2, windows.taps, windows.taps, dtype=torch.float32).to(DEVICE)
    weight, of_x = half + half.transpose(1, 2), image(*x.shape).to(x)
    mean, of_mean = (image(2, windows.taps, seed=n).float().to(DEVICE) for n in (1, 2))
    given = of_mean.T.contiguous().T, torch.cat([weight, weight], 2)[..., : windows.taps]
    found = on_gpu.window_gradient(x, mean, given, of_x, axes, 0.5)
    assert found.dtype is dtype
    assert found.stride() == x.stride()
    taps = windows.read(x.double()) - mean.double().unsqueeze(2)
    written = windows.write(weight.double() @ taps + of_mean.double().unsqueeze(2) / 2, x.double())
    assert distance(found, written + of_x.double()) < EXACT[dtype]


#: Images, channels, outputs, size.
CHANNELS = [(3, 4, 6, 7), (2, 24, 40, 5), (1, 130, 20, 9)]


@pytest.mark.parametrize(("images", "channels", "outputs", "size"), CHANNELS)
def test_products_and_maps_of_channels_are_those_of_torch(images, channels, outputs, size):
    x, g = (
        image(images, c, size, size).to(DEVICE, torch.bfloat16).to(memory_format=LAYOUTS["nhwc"])
        for c in (channels, outputs)
    )
    shift, bias = image(channels).float().to(DEVICE), image(outputs).float().to(DEVICE)
    weight = image(outputs, channels).float().to(DEVICE)
    away = (x.float() - shift.view(-1, 1, 1)).bfloat16()
    with torch.no_grad():
        found = channels_on_gpu.products(g, x, shift)
        own = channels_on_gpu.products(x, x, shift, both=True)
        y = channels_on_gpu.mapped(x, weight, bias, shift=shift, other=g, factors=(0.5, 2))
        plain = channels_on_gpu.mapped(x, weight, bias)
    exact = 1e-6 if DEVICE == "cuda" else 1e-2  # the interpreter cuts what it should round
    for left, result in ((g, found), (away, own)):
        truth = torch.einsum("nohw,nchw->oc", left.double(), away.double())
        assert distance(result[:, :-1], truth) < exact
        assert distance(result[:, -1], left.double().sum((0, 2, 3))) < exact
    exact = 5e-3 if DEVICE == "cuda" else 2e-2
    rounded, column = weight.bfloat16().double(), bias.double().view(-1, 1, 1)
    truth = torch.einsum("oc,nchw->nohw", rounded, away.double())
    assert distance(y, truth / 2 + 2 * column + g.double()) < exact
    truth = torch.einsum("oc,nchw->nohw", rounded, x.double()) + column
    assert distance(plain, truth) < exact
    assert y.is_contiguous(memory_format=torch.channels_last)


#: Groups, branches, outputs and inputs of a group, and branches that are the input itself.
ROWS = [(1, 4, 5, 5, 1), (3, 2, 4, 6, 0), (6, 5, 1, 9, 0), (2, 1, 3, 3, 2), (1, 3, 7, 130, 0)]


@pytest.mark.parametrize("has_affine", [True, False])
@pytest.mark.parametrize(("g", "b", "r", "d", "inputs"), ROWS)
def test_arithmetic_of_rows_is_that_of_torch(g, b, r, d, inputs, has_affine):
    """One row has a variance that is all rounding; kernels get vectors that lie in no row."""
    rows, half = image(g, b, r, d), image(g, d, d, seed=1)
    rows[0, 0, 0] = 0
    mean, offset = image(g, d, seed=2), image(g, d, seed=3)
    covariance = half @ half.transpose(1, 2)
    product = (rows.flatten(1, 2) @ covariance).view_as(rows)
    product[0, 0, 0] = -1
    n, o = b + inputs, g * r
    affine = [image(o, seed=4 + i) for i in range(2 * n)] if has_affine else []
    of_rows, of_kernel, of_shift = image(g, b, r, d), image(g, r, d, seed=9), image(o)
    results = []
    for module, dtype in ((rows_in_torch, torch.float64), (rows_on_gpu, torch.float32)):

        def given(*tensors, dtype=dtype, is_there=module is rows_on_gpu):
            there = [t.to(DEVICE if is_there else "cpu", dtype) for t in tensors]
            return [torch.stack([t, t], -1)[..., 0] for t in there] if is_there else there

        own, products = (t.contiguous() for t in given(rows, product))
        moments = given(mean, covariance, offset)
        found = module.statistics(own, products, *moments, inputs, 1.5)
        means, spread, *_, kept = found
        affine_there = given(*affine)
        kernel, shift, scales, inverses = module.merged(
            own, means, spread, affine_there[:n], affine_there[n:], 1e-3
        )
        arrived = given(scales, inverses, of_kernel, of_shift)
        of_all = module.merged_gradient(own, means, *arrived, len(affine) // 2)
        of_moments = module.statistics_gradient(
            own, products, moments[0], *given(kept, of_rows), *of_all[1:3]
        )
        results.append([*found, kernel, shift, *of_all[:4], *of_all[4], *of_moments])
    truths, founds = results
    assert len(truths) == len(founds)
    for truth, found in zip(truths, founds, strict=True):
        assert truth.shape == found.shape
        assert distance(found.double().cpu(), truth.double()) < 1e-5


#: Block, kernel size, options, and how it is run.
BLOCKS = [
    *(("mobileone", 3, {"stride": stride, "groups": 4}, "merged") for stride in (1, 2)),
    ("mobileone", 1, {}, "merged"),
    ("mobileone", 1, {"groups": 2}, "merged"),
    ("mobileone", 1, {"stride": 2}, "merged"),
    ("repvgg", 3, {"post_norm": True}, "merged"),
    *((name, 3, {}, "auto") for name in ("plain", "repvgg", "dbb", "acb", "qarepvgg")),
    *(("repvgg", 3, {"activation": name}, "auto") for name in (None, "gelu")),
    ("repvgg", 3, {"se": 0.5}, "auto"),
    *[("mobileone", 5, {"groups": 4}, "merged")][: DEVICE == "cuda"],
]


@pytest.mark.parametrize(("name", "size", "options", "execution", "layout", "dtype"), each(BLOCKS))
def test_a_training_step_is_that_of_the_branches(name, size, options, execution, layout, dtype):
    options = {"activation": None} | options if dtype is torch.bfloat16 else options
    block, x = block_of(name, 4, 4, size, **options), image(3, 4, 6, 7)
    truth = step(block, x, "branchwise")
    found = step_there(block, x, execution, layout, dtype)
    assert_same(found, truth, EXACT[dtype] * 5, EXACT[dtype] * 10)


@pytest.mark.parametrize(("name", "execution"), [("mobileone", "merged"), ("repvgg", "auto")])
def test_norms_whose_channels_share_a_number(name, execution):
    block, x = with_shared_numbers(block_of(name, 4, 4, 1)), image(3, 4, 6, 7)
    truth = step(block, x, "branchwise")
    assert_same(step_there(block, x, execution, "nhwc", torch.float32), truth, 1e-5, 2e-5)


@pytest.mark.parametrize(("size", "layout", "dtype"), each([(1,), (3,)]))
def test_frozen_blocks_are_differentiable(size, layout, dtype):
    block, x = block_of("mobileone", 4, 4, size, activation=None), image(3, 4, 6, 7)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    truth = step(block, x, "branchwise")
    assert_same(
        step_there(block, x, "auto", layout, dtype), truth, EXACT[dtype] * 5, EXACT[dtype] * 10
    )


def step_there(block, x, execution, layout, dtype):
    block, x = block.float().to(DEVICE), x.to(DEVICE, dtype).to(memory_format=LAYOUTS[layout])
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = step(block, x, execution)
    weights = {key: value.cpu() for key, value in found.of_weights.items()}
    buffers = {key: value.cpu() for key, value in found.buffers.items()}
    return Step(found.output.cpu(), found.of_input.cpu(), weights, buffers)


def test_normed_sums_run_where_nothing_is_merged(monkeypatch):
    found, kernel_of = [], normed_sum._kernel
    monkeypatch.setattr(normed_sum, "_kernel", lambda name: found.append(name) or kernel_of(name))
    step_there(block_of("repvgg", 4, 4, 3), image(2, 4, 6, 7), "auto", "nhwc", torch.float32)
    assert found == ["statistics", "normed_sum", "gradient_sums", "gradients"]


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_an_activation_are_called(kind):
    block, called = block_of("plain", 4, 4, 1).float().to(DEVICE), []
    getattr(block.tail.act, f"register_{kind}_hook")(lambda *_: called.append(kind))
    block(image(2, 4, 3, 3).float().to(DEVICE)).sum().backward()
    assert called == [kind]


def pad_less(block):
    block.branches["skeleton0"].conv.padding = (0, 0)


def norm_fewer(block):
    for norm in block.branches.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.__init__(3)


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        (lambda _: None, (4, 4, 5), "4D input"),
        (pad_less, (2, 4, 5, 5), "must match the size"),
        (norm_fewer, (2, 4, 5, 5), "running_mean should contain"),
    ],
    ids=["unbatched", "shapes", "channels"],
)
def test_torch_refuses_what_does_not_fit(change, shape, message):
    block = block_of("acb", 4, 4, 3).float()
    change(block)
    with pytest.raises((ValueError, RuntimeError), match=message):
        block.to(DEVICE)(torch.randn(shape, device=DEVICE))


@triton.jit
def _places(found, channels, stride_c, BLOCK_C: tl.constexpr):  # noqa: N803
    _, place, _ = triton_moments.block(0, channels, 1, 0, stride_c, 1, BLOCK_C, 1)
    tl.store(found + tl.arange(0, BLOCK_C)[:, None], place)


def test_places_in_large_images_do_not_overflow():
    found = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    _places[(1, 1)](found, 4, 2**30, 4)
    assert found.tolist() == [channel * 2**30 for channel in range(4)]
