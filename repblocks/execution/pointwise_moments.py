"""Mean and covariance of the channels of each group: what every pointwise branch reads.

Shapes: x ``(N, C, *spatial)``, G groups of D = C / G channels, R outputs of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repblocks.algebra.axis import Axis
from repblocks.execution import channels_on_gpu
from repblocks.execution.convolving import (
    channel_sums,
    convolve,
    shifted,
    summable,
    sums_wide,
    wide,
)


@dataclass(frozen=True)
class Channels:
    """The vector of the channels of a group, at each position.

    Args:
        groups: G.
        ndim: Number of spatial axes.
    """

    groups: int
    ndim: int

    @property
    def axes(self) -> tuple[Axis, ...]:
        """A single tap."""
        return (Axis(),) * self.ndim

    def count(self, x: Tensor) -> int:
        """Return how many vectors are read."""
        return x.numel() // x.shape[1]

    def offset(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the centre, ``(G, D)``."""
        del x
        return centre.view(self.groups, -1)

    def moments(self, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``(G, D)`` less the centre, and the covariance ``(G, D, D)``."""
        if self.groups == 1 and channels_on_gpu.serves(x):
            found = channels_on_gpu.products(x, x, centre, both=True) / self.count(x)
            average = found[:, -1]
            covariance = torch.addr(found[:, :-1], average, average, alpha=-1)
            return average.unsqueeze(0), covariance.unsqueeze(0)
        centred = shifted(summable(x)[0], -centre)
        total = channel_sums(centred, centre.dtype)
        mean = (total / self.count(x)).view(self.groups, -1)
        second = self._products(centred, centred) / self.count(x)
        return mean, second - mean.unsqueeze(2) * mean.unsqueeze(1)

    def gradient(
        self, x: Tensor, mean: Tensor, of_mean: Tensor, of_covariance: Tensor, of_x: Tensor
    ) -> Tensor:
        """Return the gradient of the input from those of its moments, of the mean ``(G, D)``."""
        if self.groups == 1 and channels_on_gpu.serves(x):
            weight, bias, share = of_covariance.squeeze(0), of_mean.squeeze(0), 1 / self.count(x)
            factors = (2 * share, share)
            return channels_on_gpu.mapped(
                x, weight, bias, shift=mean.squeeze(0), other=of_x, factors=factors
            )
        weight = of_covariance * (2 / self.count(x))  # it is symmetric: a sum of squares
        kernel = weight.flatten(0, 1).view(x.shape[1], -1, *(1,) * self.ndim)
        bias = of_mean / self.count(x)
        if sums_wide(x):  # a bias would be rounded beside what it cancels
            read = shifted(x, -mean.flatten())
            own = convolve(read, kernel, None, self.axes, self.groups)
            return shifted(own, bias.flatten(), of_x)
        bias -= (weight @ mean.unsqueeze(2)).squeeze(2)
        own = convolve(wide(x), kernel, bias.flatten(), self.axes, self.groups)
        return own.add_(of_x)

    def product(self, g: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of ``g`` times the centred channels, ``(G, R, D)``, and of ``g``."""
        if self.groups == 1 and channels_on_gpu.serves(g, x):
            found = channels_on_gpu.products(g, x, centre)
            return found[:, :-1].unsqueeze(0), found[:, -1]
        total = channel_sums(g, centre.dtype)
        g, x = summable(g, x)
        return self._products(g, shifted(x, -centre)), total

    def _products(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the sums of the products of all pairs of channels of a group."""
        if self.groups == 1 and a.ndim == 4 and b.is_contiguous(memory_format=torch.channels_last):
            left, right = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (a, b))
            return _product(left.T.unsqueeze(0), right.unsqueeze(0))
        left, right = (t.flatten(2).view(len(t), self.groups, -1, t[0, 0].numel()) for t in (a, b))
        if left.shape[3] < left.shape[2]:
            # A matrix for each image would be larger than the image.
            left, right = (t.permute(1, 2, 0, 3).flatten(2) for t in (left, right))
            return _product(left, right.transpose(1, 2))
        each = _product(left.flatten(0, 1), right.flatten(0, 1).transpose(1, 2))
        return each.view(*left.shape[:2], *each.shape[1:]).sum(0)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of matrices ``(B, M, K)`` and ``(B, K, N)``, in float32 at least."""
    if left.dtype is not torch.bfloat16:
        return left @ right
    return (
        torch.bmm(left, right, out_dtype=torch.float32)
        if left.is_cuda
        else wide(left) @ wide(right)
    )
