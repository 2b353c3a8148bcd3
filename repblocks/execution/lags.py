"""Products of taps that depend on the difference of the taps alone.

At stride 1, the sum of ``x[p + u] x[p + v]`` over *all* positions p is one number for each lag
``v - u``: the autocorrelation of the image. A few passes give it, and the positions outside the
output, which a window near the border would have, are few and are taken away one by one.

Shapes: x ``(N, C, H, W)``, G groups of D = C / G channels, windows of ``*k`` taps, K of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional

from repblocks.algebra.axis import Axis
from repblocks.execution.convolving import gradient_of_weight

#: Taps of the kernel whose weight gradient the libraries of torch compute fastest.
_TILE = 3
#: Positions that a weight gradient sums up: it adds one to the next, and loses digits with each.
_POSITIONS = 2**13


@dataclass(frozen=True)
class Strip:
    """Positions near the border of an image that are no outputs.

    Args:
        axes: Where the taps read that read something of the image at all.
        read: The part of the image that they read, of ``(N, C, H, W)``.
        pairs: The pairs of these taps, of ``(G, D, *k, D, *k)``.
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

    def products(self, x: Tensor, groups: int) -> Tensor:
        """Return the sums over all positions of the products of pairs, ``(G, D, *k, D, *k)``."""
        rows, columns = self.sizes
        # Lags (a, b) with a >= 0; the others are theirs by symmetry.
        images = max(_POSITIONS // (x.shape[2] * x.shape[3]), 1)
        half = reduce(torch.add, [self._half(part, groups) for part in torch.split(x, images)])
        half = half[..., :rows, : 2 * columns - 1]
        half = half.reshape(groups, half.shape[1], half.shape[1], rows, -1)
        full = torch.cat([half[..., 1:, :].flip(3, 4).transpose(1, 2), half], 3)
        pairs = x.new_empty(*half.shape[:2], rows, columns, half.shape[1], rows, columns)
        for (row, column), differences in self._differences():
            pairs[:, :, row, column] = full[differences]
        return pairs

    def _half(self, x: Tensor, groups: int) -> Tensor:
        """Return the products ``(C, D, >= rows, >= 2 * columns - 1)`` for lags downwards."""
        return self._half_depthwise(x) if groups == x.shape[1] else self._half_dense(x, groups)

    def _half_dense(self, x: Tensor, groups: int) -> Tensor:
        """Multiply flat images, zeros between them, with themselves from each lag on."""
        rows, columns = self.sizes
        depth, (down, right) = x.shape[1] // groups, self._reach
        height, width = x.shape[2] + down, x.shape[3] + right
        count, last = len(x) * height * width, down * width + right
        memory = x.new_zeros(x.shape[1], count + last)
        images = memory[:, :count].view(-1, len(x), height, width)
        images[..., : x.shape[2], : x.shape[3]] = x.transpose(0, 1)
        flat = memory.view(groups, depth, -1)
        found = x.new_empty(groups, depth, depth, rows, 2 * columns - 1)
        middle = columns - 1
        for row, lag in product(range(rows), range(1 - columns, columns)):
            if row == 0 and lag < 0:
                continue
            place = row * self.dilation[0] * width + lag * self.dilation[1]
            found[..., row, middle + lag] = flat[..., :count] @ flat[..., place : place + count].mT
        found[..., 0, :middle] = found[..., 0, middle + 1 :].flip(-1).transpose(1, 2)
        return found.flatten(0, 1)

    def _half_depthwise(self, x: Tensor) -> Tensor:
        """Take weight gradients of small kernels, which the libraries of torch compute fast."""
        rows, columns = self.sizes
        counts = [-(-size // _TILE) for size in (rows, 2 * columns - 1)]
        shape = [count * _TILE for count in counts]
        found = x.new_empty(x.shape[1], 1, *shape)
        high = (shape[0] - 1) * self.dilation[0]
        left = self._reach[1]
        right = (shape[1] - 1) * self.dilation[1] - left
        padded = functional.pad(x, (left, right, 0, high))
        lattice = [Axis(_TILE, dilation=step) for step in self.dilation]
        extents = [axis.extent - 1 for axis in lattice]
        for row, column in product(*(range(0, size, _TILE) for size in shape)):
            top, left = row * self.dilation[0], column * self.dilation[1]
            part = padded[
                ...,
                top : top + x.shape[2] + extents[0],
                left : left + x.shape[3] + extents[1],
            ]
            own = gradient_of_weight(x, part, (_TILE, _TILE), lattice, x.shape[1])
            found[..., row : row + _TILE, column : column + _TILE] = own
        return found

    def convolved(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """Return the sum over all positions of ``weight (G, D, *k, D, *k)`` times the taps."""
        rows, columns = self.sizes
        depth = x.shape[1] // groups
        kernel = weight.new_zeros(groups, depth, depth, 2 * rows - 1, 2 * columns - 1)
        for (row, column), differences in self._differences():
            kernel[differences] += weight[:, :, row, column]
        return functional.conv2d(
            x, kernel.flatten(0, 1), padding=self._reach, dilation=self.dilation, groups=groups
        )

    @property
    def _reach(self) -> tuple[int, int]:
        """Positions from the first tap to the last."""
        (rows, columns), (down, right) = self.sizes, self.dilation
        return (rows - 1) * down, (columns - 1) * right

    def outside(self, axes: tuple[Axis, ...]) -> Iterator[Strip]:
        """Give the positions that are no outputs, in strips before and after the outputs."""
        first, second = axes
        every = slice(None)
        for axis, rows, taps in _ends(first):
            pairs = (every, every, taps, every, every, taps, every)
            yield Strip((axis, _widened(second)), (every, every, rows), pairs)
        for axis, columns, taps in _ends(second):
            pairs = (every, every, every, taps, every, every, taps)
            yield Strip((first, axis), (every, every, every, columns), pairs)

    def _differences(self) -> Iterator[tuple[tuple[int, int], tuple[EllipsisType | slice, ...]]]:
        """Give each tap, and where the lags from it to all taps stand among all lags."""
        rows, columns = self.sizes
        for row, column in product(range(rows), range(columns)):
            down = slice(rows - 1 - row, 2 * rows - 1 - row)
            yield (row, column), (..., down, slice(columns - 1 - column, 2 * columns - 1 - column))


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
