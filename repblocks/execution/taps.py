"""Moments of what single rows of a dense kernel read: each tap of a window, or one sum of them.

Shapes: G groups of D channels, K taps of the window, T weighted sums of them (K or 1), R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from repblocks.execution.dense_moments import DenseMoments
from repblocks.execution.statistics import resolved, variances
from repblocks.execution.window_moments import Windows


@dataclass(frozen=True)
class Taps:
    """The moments of T weighted sums of the taps, of the input less its centre and of the mask.

    Args:
        weights: ``(1, K)``, of the sum; None for each tap by itself.
        mean: ``(G, D, T)``.
        covariance: ``(G, DT, DT)``.
        cross: ``(G, D, T, T)``, of input and mask.
        mask: ``(T,)``, the mean of the mask.
        deviation: ``(T, T)``, the covariance of the mask.
    """

    weights: Tensor | None
    mean: Tensor
    covariance: Tensor
    cross: Tensor
    mask: Tensor
    deviation: Tensor

    @classmethod
    def each(cls, moments: DenseMoments, reading: Windows) -> Taps:
        """Return the moments of each tap by itself."""
        mask = reading.mask(moments.x)[0]
        deviation = mask - mask.mean(1, keepdim=True)
        like = moments.mean
        return cls(
            None,
            moments.mean,
            moments.covariance,
            moments.cross,
            mask.mean(1).to(like),
            (deviation @ deviation.T / mask.shape[1]).to(like),
        )

    def summed(self, weights: Tensor) -> Taps:
        """Return the moments of one weighted sum; the weights are ``(1, K)``."""
        depth, column = self.mean.shape[1], weights.T
        shape = (len(self.mean), depth, self.mean.shape[2], -1)
        half = weights @ self.covariance.view(shape)
        return replace(
            self,
            weights=weights,
            mean=self.mean @ column,
            covariance=(half.view(len(self.mean), depth, depth, -1) @ column).squeeze(3),
            cross=weights @ self.cross @ column,
            mask=weights @ self.mask,
            deviation=weights @ self.deviation @ column,
        )


@dataclass(frozen=True)
class Rows:
    """A linear map of what is read.

    Args:
        weight: ``(G, R, D, T)``, on the input less its centre.
        inside: ``(G, R, T)``, on the mask of the image.
        taps: What is read.
        constant: ``(O,)``, added everywhere; None for zero.
    """

    weight: Tensor
    inside: Tensor
    taps: Taps
    constant: Tensor | None = None

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean less the offset, the variance, and the offset, each ``(1, O)``."""
        taps, flat = self.taps, self.weight.flatten(2)
        means = flat @ taps.mean.flatten(1).unsqueeze(2)
        mixed = 2 * (flat @ taps.cross.flatten(1, 2)) + self.inside @ taps.deviation
        spread = variances(flat, taps.covariance) + (mixed * self.inside).sum(2)
        read = taps.covariance.diagonal(dim1=1, dim2=2), taps.deviation.diagonal()
        spread = resolved(spread, (flat, read[0]), (self.inside, read[1]))
        offsets = (self.inside @ taps.mask).flatten()
        if self.constant is not None:
            offsets = offsets + self.constant
        return means.view(1, -1), spread.view(1, -1), offsets.unsqueeze(0)

    def scaled(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kernels ``(G, R, D, K)`` and ``(G, R, K)`` of the scaled rows."""
        scales = scales.view(*self.weight.shape[:2], 1)
        kernel, inside = scales.unsqueeze(3) * self.weight, scales * self.inside
        weights = self.taps.weights
        return (kernel, inside) if weights is None else (kernel * weights, inside * weights)
