"""Find what a module does whose code cannot be traced, from what it gives.

Zeros tell the bias, the sizes of outputs the stride, impulses the taps and where they read. Random
images of other sizes, small and large, then tell whether that is all it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import gcd, prod

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from repblocks.algebra.affine import AffineMap, Lazy
from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import ConvKernel
from repblocks.errors import NotFoldable
from repblocks.folding.flow import Step, has_hooks
from repblocks.folding.operation import Kind, Operation, numel
from repblocks.folding.operations import unary
from repblocks.folding.recording import copied, run_wide, wide_view_of
from repblocks.folding.state import constant, memory_of

#: Positions on an axis of the probed images, by the number of axes.
_SIZES = {1: 64, 2: 24, 3: 10}
#: Values of all responses to impulses, of those at a time, and multiply-adds for them, at most.
_BUDGET, _CHUNK, _WORK = 1 << 26, 1 << 23, 1 << 31
#: Strides are looked for up to this one.
_STRIDES = 4
#: Of the largest value: what is smaller is rounding.
_ROUNDING, _TOLERANCE = 1e-12, 1e-11
#: The same in the module's own dtype, where rounding is all that may differ.
_OWN_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
#: Some code does otherwise on small images, on large ones, or where values are beyond a bound.
_LENGTHS = {1: (1, 2, 5, 300), 2: (1, 2, 5, 100), 3: (1, 2, 5, 24)}
_SCALES = (1e3, 1e-3, -1.0, 1e6, 1e12)

Lengths = Sequence[tuple[int, int]]


def probe(step: Step) -> Operation:
    """Say what an opaque module does to affine maps.

    Raises:
        NotFoldable: if it is no convolution, or too large to find out.
    """
    if step.is_refused:
        raise NotFoldable(step.problem)
    probed = _Probed(step)
    macs = probed.macs()
    probed.check_work(macs, 2 * _STRIDES * probed.ndim)
    probed.check_doubling()
    bias, lengths = probed.bias(), [probed.lengths(axis) for axis in range(probed.ndim)]
    for is_depthwise in (True, False):
        if not is_depthwise:
            probed.check_work(macs, probed.channels)
        own = _affine(probed, bias, lengths, is_depthwise=is_depthwise)
        if own is not None and probed.is_same(own):
            kind = Kind.WEIGHT if macs else Kind.OTHER
            return unary(probed.operand, kind, own, 1, macs or numel(step.shape))
    raise NotFoldable("It is opaque, and no convolution.")


class _Probed:
    """An opaque module as a function of images of any size, in float64.

    Args:
        step: One call of it.

    Raises:
        NotFoldable: if it does more than read an image.
    """

    def __init__(self, step: Step) -> None:
        module, operand = step.module, step.args[0] if step.args else None
        is_called_so = len(step.args) == 1 and not step.kwargs and step.scope is not None
        shape = operand.shape if isinstance(operand, Step) else None
        is_image = shape is not None and len(shape) - 2 in _SIZES and step.shape is not None
        is_known = module is None or step.is_apart or any(map(has_hooks, module.modules()))
        if is_known or not is_called_so or not is_image:
            raise NotFoldable(step.problem)
        self.operand: Step = operand  # type: ignore[assignment] # just checked
        self.shape: Sequence[int] = shape  # type: ignore[assignment]
        self.channels, self.ndim = self.shape[1], len(self.shape) - 2
        self.size = _SIZES[self.ndim]
        self._problem = step.problem
        self._twin = wide_view_of(copied(module))  # type: ignore[arg-type]
        self._memory = memory_of(self._twin)
        self._like = next(self._twin.parameters(), torch.empty(0))

    def __call__(self, x: Tensor) -> Tensor:
        """Run the module on ``x (N, C, *spatial)``."""
        try:
            with constant(self._twin, self._memory):
                found = run_wide(self._twin, (x.double(),))
        except Exception as error:  # the module's own code, with another input
            raise NotFoldable(f"{self._problem} Images of other sizes: {error}") from error
        y = found.get("")
        if y is None or y.ndim != x.ndim or len(y) != len(x):
            raise NotFoldable(self._problem)
        return y

    def check_doubling(self) -> None:
        """Check what most modules fail that are no convolution, before much is done."""
        x = torch.randn(*self.shape, generator=torch.Generator().manual_seed(0))
        zero, once, twice = self(x * 0.0), self(x), self(x * 2.0)
        if not _is_close(twice - once, once - zero, float(zero.abs().max())):
            raise NotFoldable("It is opaque, and not affine.")

    def bias(self) -> Tensor:
        """Return what it gives on zeros, ``(C_out,)``."""
        zero = self(torch.zeros(1, self.channels, *[self.size] * self.ndim))
        bias = zero[0].flatten(1)[:, 0].clone()
        if not _is_close(zero, _along_channels(bias, zero).expand_as(zero), 0.0):
            raise NotFoldable("It is opaque, and gives no constant on zeros.")
        return bias

    def lengths(self, axis: int) -> Lengths:
        """Return lengths of one axis before and after."""
        found: list[tuple[int, int]] = []
        for length in range(self.size, self.size + 2 * _STRIDES):
            sizes = [length if one == axis else self.size for one in range(self.ndim)]
            found.append((length, self(torch.zeros(1, self.channels, *sizes)).shape[2 + axis]))
        return found

    def responses(self, places: Sequence[int], *, is_depthwise: bool) -> Tensor:
        """Return what it gives on an impulse in each channel, ``(C_in or 1, C_out, *spatial)``."""
        images = 1 if is_depthwise else self.channels
        size = [self.size] * self.ndim
        x = torch.zeros(images, self.channels, *size)
        number = torch.arange(self.channels)
        place = map(torch.tensor, places)
        x[(number.clamp(max=images - 1), number, *place)] = 1.0
        return torch.cat([self(part) for part in torch.split(x, max(1, _CHUNK // x[0].numel()))])

    def check_work(self, macs: int, images: int) -> None:
        """Check that so many images are not too much work; ``macs`` are those of the example.

        Raises:
            NotFoldable: if they are.
        """
        positions = prod(self.shape) // self.channels
        if macs // positions * images * self.size**self.ndim > _WORK:
            raise NotFoldable("It is opaque, and too large to find out what it does.")

    def is_same(self, own: AffineMap) -> bool:
        """Tell whether it is a map, from random images."""
        if min(side for axis in own.axes for side in (axis.low, axis.high)) <= -self.size // 4:
            return False  # A kernel that reads far from where it writes is none.
        generator = torch.Generator().manual_seed(0)
        kernel = ConvKernel.from_affine(own)
        for sizes, scale in self._images():
            expected = [(n + a.slack) // a.stride + 1 for n, a in zip(sizes, own.axes, strict=True)]
            if min(expected) < 1:
                continue  # neither gives anything
            x = torch.randn(1, self.channels, *sizes, generator=generator).double() * scale
            if not _is_close(self(x), kernel(x), _constant(own)):
                return False
        return self._is_same_in_its_dtype(kernel)

    def _images(self) -> Iterator[tuple[Sequence[int], float]]:
        yield self.shape[2:], 1.0
        for number, scale in enumerate(_SCALES):
            yield [self.size + number - axis for axis in range(self.ndim)], scale
        for length in _LENGTHS[self.ndim]:
            yield [length + axis for axis in range(self.ndim)], 1.0

    def _is_same_in_its_dtype(self, kernel: ConvKernel) -> bool:
        """Tell the same on the example's size, without widening: casts are then seen."""
        dtype = self.operand.dtype or torch.float64
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(*self.shape, generator=generator).to(self._like.device, dtype)
        y, truth = self._run(x), kernel(x.to("cpu", torch.float64))
        tolerance = _OWN_TOLERANCE.get(dtype, 0.1)
        return bool((y.cpu() - truth).abs().max() <= tolerance * truth.abs().max())

    def macs(self) -> int:
        """Count the multiply-adds of the layers inside, on the example."""
        x = torch.zeros(*self.shape, dtype=self.operand.dtype, device=self._like.device)
        with FlopCounterMode(display=False) as counter:
            self._run(x)
        return int(counter.get_total_flops()) // 2

    def _run(self, x: Tensor) -> Tensor:
        """Run the module as it is."""
        with constant(self._twin, self._memory), torch.no_grad():
            result: Tensor = self._twin(x)
        return result


def _constant(own: AffineMap) -> float:
    return 0.0 if own.bias is None else float(own.bias().abs().max())


def _affine(
    probed: _Probed, bias: Tensor, lengths: Sequence[Lengths], *, is_depthwise: bool
) -> AffineMap | None:
    """Return the convolution that gives what a module gives on zeros and impulses."""
    fits = len(bias) == probed.channels if is_depthwise else True
    values = (1 if is_depthwise else probed.channels) * len(bias) * probed.size**probed.ndim
    if not fits or values > _BUDGET:
        return None
    strides = list(map(_stride, lengths))
    weight, offsets = _taps(probed, strides, bias, is_depthwise=is_depthwise)
    axes: list[Axis] = []
    for axis in range(probed.ndim):
        weight, one = _axis(weight, axis, offsets[axis], strides[axis], lengths[axis])
        axes.append(one)
    index = torch.arange(probed.channels).unsqueeze(1)
    if not is_depthwise:
        index, weight = _sparse(weight)
    shift = Lazy(lambda: bias) if bias.any() else None
    return AffineMap(probed.channels, index, Lazy(lambda: weight), shift, tuple(axes))


def _stride(lengths: Lengths) -> int:
    steps = [n for n in range(1, len(lengths)) if lengths[n][1] == lengths[n - 1][1] + 1]
    if len(steps) < 2:
        raise NotFoldable("It is opaque, and its output grows otherwise than that of a kernel.")
    return steps[1] - steps[0]


def _taps(
    probed: _Probed, strides: Sequence[int], bias: Tensor, *, is_depthwise: bool
) -> tuple[Tensor, list[range]]:
    """Return the response to impulses ``(C_out, C_in or 1, *T)`` by the place that is read.

    Output ``o`` reads an impulse at ``p`` with the tap that lies at ``p - stride * o``.
    """
    parts: list[tuple[list[Tensor], Tensor]] = []
    for phase in product(*map(range, strides)):
        places = [probed.size // 2 + shift for shift in phase]
        y = probed.responses(places, is_depthwise=is_depthwise)
        at = [p - s * torch.arange(n) for p, s, n in zip(places, strides, y.shape[2:], strict=True)]
        parts.append((at, (y - _along_channels(bias, y)).transpose(0, 1)))
    lows = [min(int(at[axis].min()) for at, _ in parts) for axis in range(probed.ndim)]
    highs = [max(int(at[axis].max()) for at, _ in parts) for axis in range(probed.ndim)]
    offsets = [range(low, high + 1) for low, high in zip(lows, highs, strict=True)]
    taps = torch.zeros(*parts[0][1].shape[:2], *map(len, offsets)).double()
    for at, y in parts:
        rows = [a - low for a, low in zip(at, lows, strict=True)]
        taps[:, :, *torch.meshgrid(*rows, indexing="ij")] = y  # type: ignore[index] # tensors
    taps[taps.abs() <= _ROUNDING * taps.abs().max()] = 0.0
    if not taps.any():
        raise NotFoldable("It is opaque, and gives the same for every input.")
    return taps, offsets


def _axis(
    taps: Tensor, axis: int, offsets: range, stride: int, lengths: Lengths
) -> tuple[Tensor, Axis]:
    """Cut the taps to those that are not zero on one axis, and say how it is read."""
    is_used = taps.movedim(2 + axis, 0).flatten(1).any(1).nonzero().flatten().tolist()
    first, last = is_used[0], is_used[-1]
    dilation = max(1, gcd(*(place - first for place in is_used)))
    cut = taps.index_select(2 + axis, torch.arange(first, last + 1, dilation))
    low, extent = -offsets[first], last - first + 1
    high = max(stride * (after - 1) + extent - before - low for before, after in lengths)
    return cut, Axis(cut.shape[2 + axis], stride, low, high, dilation)


def _sparse(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return index ``(C_out, M)`` and weight ``(C_out, M, *k)`` of ``weight (C_out, C_in, *k)``.

    Rows that read fewer channels are filled with their own first one.
    """
    is_read = weight.flatten(2).any(2)
    width = int(is_read.sum(1).max())
    index = is_read.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    is_real = is_read.gather(1, index)
    index = torch.where(is_real, index, index[:, :1])
    rows = torch.arange(len(weight)).unsqueeze(1)
    return index, weight[rows, index] * is_real.view(*is_real.shape, *[1] * (weight.ndim - 2))


def _along_channels(bias: Tensor, like: Tensor) -> Tensor:
    return bias.view(1, -1, *[1] * (like.ndim - 2))


def _is_close(found: Tensor, truth: Tensor, constant: float) -> bool:
    """Tell whether two values differ by rounding; a constant in both hides what is smaller."""
    if found.shape != truth.shape or not bool(found.isfinite().all()):
        return False
    largest = max(float(truth.abs().max()), constant)
    return float((found - truth).abs().max()) <= _TOLERANCE * largest
