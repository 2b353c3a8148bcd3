"""The geometry of an affine map along one spatial axis, in whole numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from repblocks.errors import NotFoldable


@dataclass(frozen=True)
class Axis:
    """Where the taps of a kernel read along one axis.

    Output position ``j`` reads the input positions ``j * stride - low + t * dilation`` for the taps
    ``t = 0 .. size - 1``. An input of length ``L`` gives ``(L + slack) // stride + 1`` outputs.

    Args:
        size: Number of taps.
        stride: Input positions between two outputs.
        low: Positions added before the input; negative crops.
        high: Positions added after the input; negative crops.
        dilation: Input positions between two taps; 1 where there is a single tap.
    """

    size: int = 1
    stride: int = 1
    low: int = 0
    high: int = 0
    dilation: int = 1

    def __post_init__(self) -> None:
        if self.size == 1 and self.dilation != 1:
            object.__setattr__(self, "dilation", 1)

    @property
    def extent(self) -> int:
        """Input positions from the first tap to the last, both counted."""
        return (self.size - 1) * self.dilation + 1

    @property
    def slack(self) -> int:
        """What decides the output length beside the input length and the stride."""
        return self.low + self.high - self.extent

    @property
    def pads(self) -> bool:
        """Whether a tap can read outside the input."""
        return self.low > 0 or self.high > 0

    @property
    def is_even(self) -> bool:
        """Whether a layer can pad so: equally on both sides."""
        return self.low == self.high >= 0

    @property
    def is_same(self) -> bool:
        """Whether it is as long after as before, the odd one padded after: torch's ``"same"``."""
        total = self.extent - 1
        return self.stride == 1 and (self.low, self.high) == (total // 2, total - total // 2)

    @property
    def step(self) -> int:
        """The dilation, or 0 for a single tap, which fits every lattice of taps."""
        return self.dilation if self.size > 1 else 0

    def covering(self, low: int, high: int, step: int) -> Axis:
        """Widen the padding to ``low`` and ``high``; the new taps hold zeros.

        The output length stays: what is padded more is also read by more taps.
        """
        extent = self.extent + (low - self.low) + (high - self.high)
        lattice = step or 1
        return replace(self, size=(extent - 1) // lattice + 1, low=low, high=high, dilation=lattice)

    def symmetric(self) -> Axis:
        """Widen to equal padding of both sides, not negative, as ``nn.Conv2d`` needs it."""
        side = max(self.low, self.high, 0)
        return self.covering(side, side, gcd(self.step, side - self.low, side - self.high))


def torch_order(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Flatten ``(low, high)`` an axis as torch pads, where the last axis comes first."""
    return [side for pair in reversed(pairs) for side in pair]


def common_axis(axes: Sequence[Axis]) -> Axis:
    """Return the smallest axis that holds the taps of all ``axes``.

    Raises:
        NotFoldable: if the outputs do not lie at the same positions, or are not equally many for
            every input length.
    """
    strides = {axis.stride for axis in axes}
    if len(strides) > 1:
        raise NotFoldable(f"The strides of parallel branches differ: {sorted(strides)}.")
    slacks = {axis.slack for axis in axes}
    if len(slacks) > 1:
        raise NotFoldable(
            "The output sizes of parallel branches differ for some inputs: padding minus kernel "
            f"extent is {sorted(slacks)}, and must be equal."
        )
    low = max(axis.low for axis in axes)
    high = max(axis.high for axis in axes)
    step = gcd(*(axis.step for axis in axes), *(low - axis.low for axis in axes))
    return axes[0].covering(low, high, step)


def compose_axes(second: Axis, first: Axis) -> Axis:
    """Return the axis of ``second`` after ``first``; the borders are checked elsewhere."""
    step = gcd(first.step, first.stride * second.step) or 1
    extent = first.extent + first.stride * (second.extent - 1)
    return Axis(
        size=(extent - 1) // step + 1,
        stride=first.stride * second.stride,
        low=first.low + first.stride * second.low,
        high=first.high + first.stride * second.high,
        dilation=step,
    )
