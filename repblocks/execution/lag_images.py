"""Where images lie in flat memory for products that depend on the difference of two taps alone.

At stride 1 the sums over all positions of the products of two taps are those of the image with
itself, at the lag from one tap to the other. Windows that read something of an image but are no
outputs lie beside the border. They are taken away: those above and below with all columns, those
beside with the rows that are outputs. What they read is collected in lines of the edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

from torch import Tensor

from repblocks.algebra.axis import Axis
from repblocks.execution.flat_images import STACKED, array


@dataclass(frozen=True)
class LagImages:
    """Images with zeros around them that any window may read.

    Args:
        images: Number of images.
        size: Height and width.
        axes: Where the taps of a window read, at stride and dilation 1.
    """

    images: int
    size: tuple[int, int]
    axes: tuple[Axis, Axis]

    @cached_property
    def taps(self) -> tuple[int, int]:
        """Rows and columns of a window."""
        return self.axes[0].size, self.axes[1].size

    @cached_property
    def line(self) -> int:
        """Values of a row."""
        return self.size[1] + self.taps[1] - 1

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Images of a stack, values of an image, and zeros before and after the stack."""
        block = (self.size[0] + self.taps[0] - 1) * self.line
        stack = max(1, min(self.images, STACKED // block))
        return stack, block, (self.taps[0] - 1) * self.line + self.taps[1] - 1

    @cached_property
    def rows(self) -> Any:
        """Rows of an image, as parts."""
        lead, line = self.sizes[2], self.line
        return array([(row, 0, lead + row * line, self.size[1]) for row in range(self.size[0])])

    def image(self, flat: Tensor) -> Tensor:
        """View flat images ``(C, block)`` as ``(C, H, W)``."""
        return flat.view(len(flat), -1, self.line)[:, : self.size[0], : self.size[1]]

    @cached_property
    def half(self) -> Any:
        """Places of the lags from the first of two taps to a later one, from where images begin."""
        rows, columns = self.taps
        return array(
            [
                a * self.line + b
                for a in range(rows)
                for b in range(1 - columns if a else 0, columns)
            ]
        )

    @cached_property
    def all(self) -> Any:
        """Places of all lags, from the beginning of the flat memory."""
        rows, columns = (2 * size - 1 for size in self.taps)
        return array([a * self.line + b for a, b in product(range(rows), range(columns))])

    @cached_property
    def edges(self) -> tuple[tuple[Any, Any, tuple[int, ...]], tuple[Any, Any, tuple[int, ...]]]:
        """What windows outside read above and below the outputs, and what those beside do.

        These are the places of the lines, from where images begin; pairs of taps across the lines,
        each with the line that it reads; and the distance and number of values in a line, those
        before and in all, the first window and number of windows, and the number of taps along a
        line, and what a tap along and across it counts.
        """
        (first, second), (height, width) = self.axes, self.size
        rows, columns = self.taps
        every = (0, width + columns - 1)
        own = (rows - 1 - first.low, height + first.slack + 1)
        above = (1, width, columns - 1, width + 2 * columns - 2, *every, columns, 1, columns)
        beside = (self.line, height, rows - 1, height + 2 * rows - 2, *own, rows, columns, 1)
        return (*_outside(first, height, self.line), above), (*_outside(second, width, 1), beside)


def _outside(axis: Axis, size: int, step: int) -> tuple[Any, Any]:
    """Return the lines that windows read that are no outputs, and the pairs of their taps."""
    edge, count = axis.size - 1, size + axis.slack + 1
    windows = [
        [(tap, at + tap - axis.low) for tap in range(axis.size) if 0 <= at + tap - axis.low < size]
        for at in (*range(-edge, 0), *range(count, count + edge))
    ]
    lines = sorted({line for window in windows for _, line in window})
    pairs = [
        (tap, tap2, lines.index(line), lines.index(line2))
        for window in windows
        for (tap, line), (tap2, line2) in product(window, window)
    ]
    return array([step * line for line in lines]), array(pairs).reshape(-1, 4)


@lru_cache(maxsize=256)
def lag_images(images: int, size: tuple[int, int], axes: tuple[Axis, Axis]) -> LagImages:
    """Return where images lie."""
    return LagImages(images, size, axes)
