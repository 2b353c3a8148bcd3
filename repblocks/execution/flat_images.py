"""Where images lie in flat memory, for the kernels that numba compiles.

Zeros lie between rows and images, so that each tap of a window is the same memory read from another
place on. A stack of images lies one after the other, as many as the first-level cache holds.

A part of a row is its number, its first column, its place in the flat memory of an image, and its
number of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from repblocks.algebra.axis import Axis

#: Values of a stack of images: half of a first-level cache.
STACKED = 4096
_Pair = tuple[int, int]
#: Parts of rows, ``(parts, 4)``, and the distance of two columns.
Parts = tuple[Any, int]


@dataclass(frozen=True)
class FlatImages:
    """Images and their padding, one after the other.

    At a stride an image falls into phases, whose stacks follow each other; a tap reads one of them.

    Args:
        images: Number of images.
        size: Height and width.
        axes: Where the taps of a window read.
    """

    images: int
    size: _Pair
    axes: tuple[Axis, Axis]

    @cached_property
    def counts(self) -> _Pair:
        """Number of outputs along both axes."""
        rows, columns = (
            (size + axis.slack) // axis.stride + 1
            for size, axis in zip(self.size, self.axes, strict=True)
        )
        return rows, columns

    @cached_property
    def steps(self) -> _Pair:
        """Strides."""
        return self.axes[0].stride, self.axes[1].stride

    @cached_property
    def _reads(self) -> list[list[int]]:
        return [[t * axis.dilation - axis.low for t in range(axis.size)] for axis in self.axes]

    @cached_property
    def _base(self) -> list[int]:
        return [min(read) // step for read, step in zip(self._reads, self.steps, strict=True)]

    @cached_property
    def shape(self) -> _Pair:
        """Rows and columns of an image in a phase."""
        last = [max(read) // step for read, step in zip(self._reads, self.steps, strict=True)]
        rows, columns = (
            count + most - base
            for count, most, base in zip(self.counts, last, self._base, strict=True)
        )
        return rows, columns

    @cached_property
    def block(self) -> int:
        """Values of an image in a phase."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def stack(self) -> int:
        """Number of images that are computed at once."""
        values = self.block * self.steps[0] * self.steps[1]
        return max(1, min(self.images, STACKED // values))

    @cached_property
    def _taps(self) -> list[_Pair]:
        """Phase of each tap, and its place there."""
        rows, columns = self.steps
        return [
            (
                row % rows * columns + column % columns,
                (row // rows - self._base[0]) * self.shape[1] + column // columns - self._base[1],
            )
            for row, column in product(*self._reads)
        ]

    @cached_property
    def reach(self) -> int:
        """The farthest place of a tap."""
        return max(place for _, place in self._taps)

    @cached_property
    def _phase(self) -> int:
        """Values of a phase."""
        return self.stack * self.block + self.reach

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Images of a stack, values of an image in a phase, and of all phases of a stack."""
        return self.stack, self.block, self._phase * self.steps[0] * self.steps[1]

    @cached_property
    def places(self) -> Any:
        """Of each tap, in all phases, ``(K,)``."""
        return array([phase * self._phase + place for phase, place in self._taps])

    @cached_property
    def inputs(self) -> Parts:
        """The rows of an image in all phases."""
        parts = [
            (row, column, phase * self._phase + place, count)
            for phase in range(self.steps[0] * self.steps[1])
            for row, column, place, count in self._parts(phase)
        ]
        return _parts(parts), self.steps[1]

    @cached_property
    def outputs(self) -> Parts:
        """The rows of the output."""
        return self._outputs(0)

    @property
    def windows(self) -> tuple[Any, Parts, Parts, tuple[int, int, int]]:
        """What a kernel that reads windows is told of them."""
        return self.places, self.inputs, self.outputs, self.sizes

    @cached_property
    def outputs_read(self) -> Parts:
        """The rows of the output, where places before the first can be read."""
        return self._outputs(self.reach)

    @cached_property
    def read_sizes(self) -> tuple[int, int, int]:
        """The sizes of flat memory that holds outputs to be read."""
        return self.stack, self.block, self.stack * self.block + self.reach

    @property
    def covers(self) -> bool:
        """Whether each position of the input is read by a tap of some window."""
        return self.steps == (1, 1)

    @cached_property
    def phases(self) -> list[tuple[list[int], Any, Parts]]:
        """The taps that read a phase, where each finds its output, and the inputs of the phase."""
        found = []
        for phase in sorted({phase for phase, _ in self._taps}):
            taps = [k for k, (own, _) in enumerate(self._taps) if own == phase]
            places = array([self.reach - self._taps[k][1] for k in taps])
            found.append((taps, places, (_parts(self._parts(phase)), self.steps[1])))
        return found

    def image(self, flat: Tensor) -> Tensor:
        """View flat outputs ``(C, block)`` as an image ``(C, P, Q)``."""
        rows, columns = self.counts
        return flat.view(len(flat), *self.shape)[:, :rows, :columns]

    def _outputs(self, lead: int) -> Parts:
        rows, columns = self.counts
        return array([(row, 0, lead + row * self.shape[1], columns) for row in range(rows)]), 1

    def _parts(self, phase: int) -> list[tuple[int, int, int, int]]:
        (rows, columns), (height, width) = self.steps, self.size
        first = max(0, -self._base[1])
        start = (first + self._base[1]) * columns + phase % columns
        count = min(self.shape[1] - first, (width - 1 - start) // columns + 1)
        lines = (
            (row, row // rows - self._base[0]) for row in range(phase // columns, height, rows)
        )
        return [
            (row, start, line * self.shape[1] + first, count)
            for row, line in lines
            if 0 <= line < self.shape[0] and count > 0
        ]


def array(values: Any) -> Any:
    """Return whole numbers as numba takes them."""
    return torch.tensor(values, dtype=torch.int64).numpy()


def _parts(values: list[tuple[int, int, int, int]]) -> Any:
    return array(values).reshape(-1, 4)  # there may be none


@lru_cache(maxsize=256)
def flat_images(images: int, size: _Pair, axes: tuple[Axis, Axis]) -> FlatImages:
    """Return where images and their windows lie."""
    return FlatImages(images, size, axes)
