"""Convolutions in 1, 2 and 3 dimensions whose padding may differ from side to side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional

from repblocks.algebra.axis import Axis
from repblocks.algebra.special import CONV_FUNCTIONS
from repblocks.execution import compiled, image_kernels


def wide(x: Tensor) -> Tensor:
    """Return float32 for what is less precise, and anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sums_wide(x: Tensor) -> bool:
    """Tell whether an input need not be widened, as its products add up in float32.

    That is so on a GPU, in the steps of autograd that compute their gradients themselves.
    """
    return x.dtype is torch.bfloat16 and image_kernels.serves(x)


def summable(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Return inputs in a dtype whose products add up in float32 at least."""
    return inputs if all(map(sums_wide, inputs)) else tuple(map(wide, inputs))


def shifted(x: Tensor, shift: Tensor, other: Tensor | None = None) -> Tensor:
    """Return ``(N, C, *spatial)`` plus a shift ``(C,)`` and another input, in the dtype of x."""
    found = image_kernels.shifted(x, shift, other) if sums_wide(x) else None
    if found is not None:
        return found
    total = x + shift.view(-1, *(1,) * (x.ndim - 2))
    return (total if other is None else total + other).to(x.dtype)


def channel_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of each channel of ``(N, C, *spatial)``."""
    found = image_kernels.channel_sums(x) if sums_wide(x) else None
    return x.flatten(2).sum((0, 2), dtype=dtype) if found is None else found


def convolved_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a convolution computes: that of autocast, where it is on."""
    kind = x.device.type
    is_cast = torch.is_autocast_enabled(kind) and x.is_floating_point()
    return torch.get_autocast_dtype(kind) if is_cast and x.dtype != torch.float64 else x.dtype


def convolved(x: Tensor) -> Tensor:
    """Return the input as a convolution reads it, and as its output is: cast by autocast.

    A BatchNorm of the input itself does not cast, nor then does a sum with it.
    """
    return x.to(convolved_dtype(x))


def padded(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Pad the spatial axes of ``(N, C, *spatial)`` with zeros; negative crops."""
    # The last axis comes first in functional.pad.
    sides = [side for axis in reversed(axes) for side in (axis.low, axis.high)]
    return functional.pad(x, sides) if any(sides) else x


def cropped(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Undo :func:`padded`."""
    return padded(x, [replace(axis, low=-axis.low, high=-axis.high) for axis in axes])


def sampled(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Return the positions that single taps read: padded or cropped, then every stride-th."""
    x = padded(x, axes)
    if all(axis.stride == 1 for axis in axes):
        return x
    taken: list[slice | EllipsisType] = [...]
    taken += [slice(None, None, axis.stride) for axis in axes]
    return x[tuple(taken)]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, axes: Sequence[Axis], groups: int
) -> Tensor:
    """Run a kernel ``(O, C // groups, *k)`` in the dtype of ``x``.

    A single tap runs on what it reads, without a stride: strided pointwise convolutions of few
    channels in channels_last corrupt memory in the weight gradient of torch 2.15 on the CPU.
    """
    if all(axis.size == 1 for axis in axes):
        x, axes = sampled(x, axes), [Axis()] * len(axes)
        if groups == 1 and _multiplies(x):
            return _multiplied(x, weight.to(x.dtype), bias)
    x, padding = _evenly_padded(x, axes)
    return CONV_FUNCTIONS[len(axes)](
        x,
        weight.to(x.dtype),
        None if bias is None else bias.to(x.dtype),
        [axis.stride for axis in axes],
        padding,
        [axis.dilation for axis in axes],
        groups,
    )


def gradient_of_input(
    g: Tensor, x: Tensor, weight: Tensor, axes: Sequence[Axis], groups: int
) -> Tensor:
    """Return the gradient of the input of :func:`convolve`, differentiable if autograd is on."""
    if groups == 1 and all(axis == Axis() for axis in axes) and _multiplies(g):
        return _multiplied(g, weight.transpose(0, 1), None)
    if not torch.is_grad_enabled():
        found = compiled.convolution_gradient(g, x, weight, axes)
        if found is not None:
            return found
    even, padding = _evenly_padded(x, axes)
    gradient = _backward(g, even, weight, axes, padding, groups, (True, False, False))[0]
    return gradient if even is x else cropped(gradient, axes)


def gradient_of_weight(
    g: Tensor, x: Tensor, sizes: Sequence[int], axes: Sequence[Axis], groups: int
) -> Tensor:
    """Return the gradient of a weight ``(O, C // groups, *sizes)`` of :func:`convolve`."""
    even, padding = _evenly_padded(x, axes)
    weight = x.new_empty(g.shape[1], x.shape[1] // groups, *sizes)
    return _backward(g, even, weight, axes, padding, groups, (False, True, False))[1]


def _multiplies(x: Tensor) -> bool:
    """Tell whether a product of matrices is a faster pointwise map of a ``(N, C, *spatial)``.

    On a CPU the libraries of torch rearrange a contiguous input and output of a convolution, which
    counts beside few channels.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.is_contiguous():
        return False
    is_large = x.shape[2:].numel() >= 2 * x.shape[1]
    return is_large and x.dtype in (torch.float32, torch.float64) and convolved_dtype(x) == x.dtype


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    matrices = weight.flatten(1).expand(len(x), -1, -1)
    if bias is None:
        y = matrices @ x.flatten(2)
    else:
        y = torch.baddbmm(bias.to(x.dtype).view(1, -1, 1), matrices, x.flatten(2))
    return y.view(*y.shape[:2], *x.shape[2:])


def _backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    axes: Sequence[Axis],
    padding: Sequence[int],
    groups: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    stride, dilation = [axis.stride for axis in axes], [axis.dilation for axis in axes]
    none = [0] * len(axes)
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, none, groups, wanted
    )
    return result


def _evenly_padded(x: Tensor, axes: Sequence[Axis]) -> tuple[Tensor, list[int]]:
    """Return the input, and what a convolution is to pad on both sides of it."""
    padding = [axis.low for axis in axes if axis.low == axis.high >= 0]
    return (x, padding) if len(padding) == len(axes) else (padded(x, axes), [0] * len(axes))
