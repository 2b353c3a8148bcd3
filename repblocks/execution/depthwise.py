"""A depthwise convolution by compiled kernels, as a step of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from repblocks.algebra.axis import Axis
from repblocks.execution import compiled
from repblocks.execution.convolving import convolved_dtype, gradient_of_input, gradient_of_weight


def convolve_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, axes: Sequence[Axis]
) -> Tensor | None:
    """Run a kernel ``(C, 1, *k)``, or return None where torch does it.

    It can be differentiated any number of times; torch computes what is differentiated again.
    """
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    suits = compiled.convolves(x, weight, axes) and convolved_dtype(x) == x.dtype == bias.dtype
    if not suits or any(map(_has_tangent, (x, weight, bias))):
        return None
    y: Tensor = _Depthwise.apply(x, weight, bias, axes)
    return y


def _has_tangent(x: Tensor) -> bool:
    """Tell whether a forward derivative is taken, which torch alone has."""
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


class _Depthwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, axes: Sequence[Axis]) -> Tensor:
        ctx.axes = axes
        ctx.save_for_backward(x, weight)
        return cast(Tensor, compiled.convolution(x, weight, bias, axes))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, channels = None, len(weight)
        if ctx.needs_input_grad[0]:
            of_x = gradient_of_input(g, x, weight, ctx.axes, channels)
        if not any(ctx.needs_input_grad[1:3]):
            return of_x, None, None, None
        if not torch.is_grad_enabled():
            found = compiled.convolution_products(g, x, g.new_zeros(channels), ctx.axes)
            if found is not None:
                return of_x, found[0].view_as(weight), found[1].flatten(1).sum(1), None
        of_weight = gradient_of_weight(g, x, weight.shape[2:], ctx.axes, channels)
        return of_x, of_weight, g.sum((0, 2, 3)), None
