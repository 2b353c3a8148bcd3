"""Products of taps that depend on the difference of the taps alone.

At stride 1, the sum of ``x[p + u] x[p + v]`` over *all* positions p is one number for each lag
``v - u``: the autocorrelation of the image. A few passes give it, and the positions outside the
output, which a window near the border would have, are few and are taken away one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from repblocks.algebra.axis import Axis
from repblocks.execution.convolving import gradient_of_weight

#: Taps of the kernel whose weight gradient the libraries of torch compute fastest.
_TILE = 3


@dataclass(frozen=True)
class Strip:
    """Positions near the border of an image that are no outputs.

    Args:
        axes: Where the taps read that read something of the image at all.
        read: The part of the image that they read, of ``(N, C, H, W)``.
        pairs: The pairs of these taps, of ``(C, *k, *k)``.
    """

    axes: tuple[Axis, Axis]
    read: tuple[slice, ...]
    pairs: tuple[slice, ...]


@dataclass(frozen=True)
class Lags:
    """The lags of a window of ``*k`` taps, at stride 1, in two dimensions.

    Args:
        sizes: ``*k``.
        dilation: Positions between two taps, on each axis.
    """

    sizes: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, axes: tuple[Axis, ...]) -> Lags | None:
        """Return the lags of a window, or None where this way does not exist or does not pay."""
        if len(axes) != 2 or any(axis.stride > 1 or axis.low < 0 or axis.high < 0 for axis in axes):
            return None
        first, second = axes
        return cls((first.size, second.size), (first.dilation, second.dilation))

    def products(self, x: Tensor) -> Tensor:
        """Return the sums over all positions of the products of pairs of taps, ``(C, K, K)``."""
        rows, columns = self.sizes
        reach = [(size - 1) * step for size, step in zip(self.sizes, self.dilation, strict=True)]
        # Lags (a, b) with a >= 0; the others are theirs by symmetry.
        found = x.new_empty(x.shape[1], _tiled(rows), _tiled(2 * columns - 1))
        high = (found.shape[1] - 1) * self.dilation[0]
        right = (found.shape[2] - 1) * self.dilation[1] - reach[1]
        padded = functional.pad(x, (reach[1], right, 0, high))
        lattice = [Axis(_TILE, dilation=step) for step in self.dilation]
        for row, column in product(*(range(0, size, _TILE) for size in found.shape[1:])):
            top, left = row * self.dilation[0], column * self.dilation[1]
            part = padded[
                ...,
                top : top + x.shape[2] + (_TILE - 1) * self.dilation[0],
                left : left + x.shape[3] + (_TILE - 1) * self.dilation[1],
            ]
            tile = gradient_of_weight(x, part, (_TILE, _TILE), lattice, x.shape[1]).squeeze(1)
            found[:, row : row + _TILE, column : column + _TILE] = tile
        half = found[:, :rows, : 2 * columns - 1]
        full = torch.cat([half[:, 1:].flip(1, 2), half], 1).flatten(1)
        return full[:, self._lag_of_pair().to(x.device)]

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the sum over all positions of ``weight (C, K, K)`` times the taps, at each tap."""
        rows, columns = self.sizes
        lag = self._lag_of_pair().flatten().to(x.device)
        kernel = weight.new_zeros(x.shape[1], (2 * rows - 1) * (2 * columns - 1))
        kernel.index_add_(1, lag, weight.flatten(1))
        kernel = kernel.view(-1, 1, 2 * rows - 1, 2 * columns - 1)
        padding = [(size - 1) * step for size, step in zip(self.sizes, self.dilation, strict=True)]
        return functional.conv2d(
            x, kernel, padding=padding, dilation=self.dilation, groups=x.shape[1]
        )

    def outside(self, axes: tuple[Axis, ...]) -> Iterator[Strip]:
        """Give the positions that are no outputs, in strips before and after the outputs."""
        first, second = axes
        every = slice(None)
        for axis, rows, taps in _ends(first):
            pairs = (every, taps, every, taps, every)
            yield Strip((axis, _widened(second)), (every, every, rows), pairs)
        for axis, columns, taps in _ends(second):
            pairs = (every, every, taps, every, taps)
            yield Strip((first, axis), (every, every, every, columns), pairs)

    def _lag_of_pair(self) -> Tensor:
        """Return the number of the lag of each pair of taps, ``(K, K)``."""
        rows, columns = self.sizes
        row = torch.arange(rows).repeat_interleave(columns)
        column = torch.arange(columns).repeat(rows)
        down = row.unsqueeze(0) - row.unsqueeze(1) + rows - 1
        right = column.unsqueeze(0) - column.unsqueeze(1) + columns - 1
        return down * (2 * columns - 1) + right


def _tiled(size: int) -> int:
    return -(-size // _TILE) * _TILE


def _widened(axis: Axis) -> Axis:
    """Return the axis of all positions whose window reads something of the image."""
    reach = axis.extent - 1
    return Axis(axis.size, 1, max(axis.low, reach), max(axis.high, reach), axis.dilation)


def _ends(axis: Axis) -> Iterator[tuple[Axis, slice, slice]]:
    """Give the positions before and after the outputs, what they read, and the taps that do."""
    reach, step = axis.extent - 1, axis.dilation
    if reach > axis.low:
        outside = reach - axis.low
        size = (outside - 1) // step + 1
        yield Axis(size, 1, (size - 1) * step, 0, step), slice(outside), slice(-size, None)
    if reach > axis.high:
        outside = reach - axis.high
        size = (outside - 1) // step + 1
        yield Axis(size, 1, 0, (size - 1) * step, step), slice(-outside, None), slice(size)
