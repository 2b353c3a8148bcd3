"""The moments of what a kernel reads, and a kernel that runs on it, as two steps of autograd.

The kernel runs on the input that the moments passed on. Its gradient then arrives at the moments,
and what they add to it is added in the same pass. Both steps count from a centre, the mean of the
first image: moments about zero, and gradients of a kernel that reads ``x``, lose as many digits as
the mean has more than the deviation. The result is exact for any centre.

Shapes: x ``(N, C, *spatial)``; G vectors of D numbers are read at each position, R outputs of each.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from repblocks.algebra.axis import Axis
from repblocks.execution import channels_on_gpu, compiled
from repblocks.execution.convolving import (
    convolve,
    gradient_of_input,
    shifted,
    sums_wide,
    wide,
)
from repblocks.execution.once import once


class Reading(Protocol):
    """What a kernel reads."""

    @property
    def groups(self) -> int:
        """G."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Where the taps read."""

    def count(self, x: Tensor) -> int:
        """Return how many vectors are read."""

    def offset(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the mean ``(G, D)`` of what is read of an image that is the centre everywhere."""

    def moments(self, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``(G, D)`` less the offset, and the biased covariance ``(G, D, D)``.

        What is less precise is widened to float32, in which the moments are.
        """

    def gradient(
        self, x: Tensor, mean: Tensor, of_mean: Tensor, of_covariance: Tensor, of_x: Tensor
    ) -> Tensor:
        """Return the gradient of the input from those of its moments, of the mean ``(G, D)``.

        ``of_x`` is what else arrives at the input, and is added; it may be written to.
        """

    def product(self, g: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of ``g`` times what is read less the offset, ``(G, R, D)``, and of ``g``.

        The latter is ``(O,)``.
        """


def with_moments(x: Tensor, reading: Reading) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the input, the centre ``(C,)``, and mean and covariance counted from it.

    Low precision is widened to float32, in which the moments are returned.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _Moments.apply(x, reading)
    return result


def run_kernel(
    x: Tensor, kernel: Tensor, shift: Tensor, centre: Tensor, reading: Reading
) -> Tensor:
    """Run a kernel ``(G, R, D)`` on what is read less the offset, and add the shift ``(O,)``."""
    result: Tensor = _Kernel.apply(x, kernel, shift, centre, reading)
    return result


class _Moments(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, reading: Reading) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            centre = wide(x[:1]).flatten(2).mean((0, 2))
            mean, covariance = reading.moments(x, centre)
        ctx.reading = reading
        ctx.save_for_backward(x, centre, mean)
        ctx.mark_non_differentiable(centre)
        ctx.set_materialize_grads(False)
        return x.view_as(x), centre, mean, covariance

    @staticmethod
    @once
    def backward(
        ctx: Any,
        saved: tuple[Tensor, ...],
        of_x: Tensor,
        _: None,
        of_mean: Tensor,
        of_covariance: Tensor,
    ) -> tuple[Tensor, None]:
        x, centre, mean = saved
        mean = mean + ctx.reading.offset(x, centre)
        total = ctx.reading.gradient(x, mean, of_mean, of_covariance, of_x)
        return total.to(x.dtype), None


class _Kernel(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, shift: Tensor, centre: Tensor, reading: Reading
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            column = (
                shift.view(*kernel.shape[:2], 1),
                kernel,
                reading.offset(x, centre).unsqueeze(2),
            )
            bias = torch.baddbmm(*column, alpha=-1).flatten()
            y = _run(x, kernel, bias, reading)
        ctx.reading = reading
        ctx.save_for_backward(x, kernel, centre)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, saved: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, centre = saved
        reading, of_x = ctx.reading, None
        if ctx.needs_input_grad[0]:
            weight = _as_weight(kernel, reading).to(x.dtype)
            of_x = gradient_of_input(g, x, weight, reading.axes, reading.groups)
        of_kernel, of_shift = reading.product(g, x, centre)
        return of_x, of_kernel, of_shift, None, None


def _run(x: Tensor, kernel: Tensor, bias: Tensor, reading: Reading) -> Tensor:
    is_map = len(kernel) == 1 and all(axis.size == 1 for axis in reading.axes)
    if is_map and channels_on_gpu.serves(x):
        return channels_on_gpu.mapped(x, kernel.squeeze(0), bias)
    weight = _as_weight(kernel, reading).to(x.dtype)
    if sums_wide(x):  # torch takes long to add a bias
        return shifted(convolve(x, weight, None, reading.axes, reading.groups), bias)
    found = None
    if compiled.convolves(x, weight, reading.axes):
        found = compiled.convolution(x, weight, bias, reading.axes)
    return convolve(x, weight, bias, reading.axes, reading.groups) if found is None else found


def _as_weight(kernel: Tensor, reading: Reading) -> Tensor:
    """Return a kernel ``(G, R, D)`` as the weight of a convolution, ``(O, D / K, *k)``."""
    sizes = [axis.size for axis in reading.axes]
    return kernel.reshape(kernel.shape[0] * kernel.shape[1], -1, *sizes)
