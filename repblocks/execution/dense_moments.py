"""Moments of the windows of all channels of a group, and a dense kernel that runs on them.

As :mod:`repblocks.execution.moments`, with two differences. A window of D channels has (DK)²
products, far fewer of which differ: at stride 1 they are the products of two images at a few lags.
And the mask of the image, one inside and zero where a window reaches over the border, is a channel
of its own here: what is read is ``x = x' + c m``, and a branch that does not pad with zeros has a
kernel on ``m`` that does not follow from that on ``x``.

Shapes: x ``(N, C, H, W)``, G groups of D = C / G channels, K taps, P positions, R outputs a group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from repblocks.execution.convolving import (
    convolve,
    gradient_of_input,
    gradient_of_weight,
    wide,
)
from repblocks.execution.once import once
from repblocks.execution.window_moments import Windows


class DenseMoments(NamedTuple):
    """What a dense kernel needs to know of its input.

    Args:
        x: The input; what runs on it passes its gradient through the moments.
        centred: ``x'``, the input less the centre.
        centre: ``(C,)``, the mean of the first image.
        mean: ``(G, D, K)``, of ``x'``.
        covariance: ``(G, DK, DK)``, of ``x'``, biased.
        cross: ``(G, D, K, K)``, the covariance of ``x'`` and the mask.
    """

    x: Tensor
    centred: Tensor
    centre: Tensor
    mean: Tensor
    covariance: Tensor
    cross: Tensor


def dense_moments(x: Tensor, reading: Windows) -> DenseMoments:
    """Measure the moments; low precision is widened to float32, in which they are returned."""
    return DenseMoments(*_Moments.apply(x, reading))


def run_dense_kernel(
    moments: DenseMoments, kernel: Tensor, inside: Tensor, shift: Tensor, reading: Windows
) -> Tensor:
    """Run a kernel on what is read less its mean over the mask.

    Args:
        moments: Of the input.
        kernel: ``(G, R, D, K)``, of ``x'``.
        inside: ``(G, R, K)``, of the mask.
        shift: ``(O,)``.
        reading: The windows.
    """
    x, centred, centre = moments.x, moments.centred, moments.centre
    result: Tensor = _Kernel.apply(x, centred, centre, kernel, inside, shift, reading)
    return result


class _Moments(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, reading: Windows) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            centre = wide(x[:1]).flatten(2).mean((0, 2))
            centred = reading.centred(wide(x), centre)
            count = reading.count(x)
            summed = reading.read_groups(centred.sum(0, keepdim=True))
            mean = summed.sum(2) / count
            covariance = reading.gram(centred).div_(count)
            covariance.baddbmm_(mean.unsqueeze(2), mean.unsqueeze(1), alpha=-1)
            cross = summed @ reading.mask_deviation(centred)[0].T / count
        ctx.reading = reading
        ctx.save_for_backward(x, centre, mean)
        ctx.mark_non_differentiable(centred, centre)
        shape = (reading.groups, -1, reading.taps)
        return (
            x.view_as(x),
            centred,
            centre,
            mean.view(shape),
            covariance,
            cross.view(*shape, reading.taps),
        )

    @staticmethod
    @once
    def backward(
        ctx: Any,
        saved: tuple[Tensor, ...],
        of_x: Tensor,
        _: None,
        __: None,
        of_mean: Tensor,
        of_covariance: Tensor,
        of_cross: Tensor,
    ) -> tuple[Tensor, None]:
        x, centre, mean = saved
        reading: Windows = ctx.reading
        centred = reading.centred(wide(x), centre)
        count = reading.count(x)
        weight = of_covariance * (2 / count)  # it is symmetric: a sum of squares
        constant = of_mean.reshape(mean.shape) / count - (weight @ mean.unsqueeze(2)).squeeze(2)
        every = of_cross.flatten(1, 2) @ (reading.mask_deviation(centred)[0] / count)
        every = every + constant.unsqueeze(2)
        own = reading.mixed(centred, weight)
        own += reading.write(every.view(x.shape[1], reading.taps, -1), centred[:1])
        return own.add_(of_x).to(x.dtype), None


class _Kernel(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centred: Tensor,
        centre: Tensor,
        kernel: Tensor,
        inside: Tensor,
        shift: Tensor,
        reading: Windows,
    ) -> Tensor:
        sizes = [axis.size for axis in reading.axes]
        with torch.autocast(x.device.type, enabled=False):
            weight = kernel.reshape(-1, kernel.shape[2], *sizes).to(x.dtype)
            y = convolve(centred.to(x.dtype), weight, None, reading.axes, reading.groups)
            constant = inside.flatten(0, 1) @ reading.mask_deviation(centred)[0]
            y += (constant + shift.unsqueeze(1)).view(y.shape[1:])
        ctx.reading = reading
        ctx.save_for_backward(x, weight, centre)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, saved: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, centre = saved
        reading: Windows = ctx.reading
        of_x = gradient_of_input(g, x, weight, reading.axes, reading.groups)
        centred = reading.centred(wide(x), centre)
        sizes = [axis.size for axis in reading.axes]
        of_kernel = gradient_of_weight(wide(g), centred, sizes, reading.axes, reading.groups)
        shape = (reading.groups, -1, of_kernel.shape[1], reading.taps)
        summed = wide(g).sum(0).flatten(1)
        of_inside = summed @ reading.mask_deviation(centred)[0].T
        of_inside = of_inside.view(reading.groups, -1, reading.taps)
        return of_x, None, None, of_kernel.view(shape), of_inside, summed.sum(1), None
