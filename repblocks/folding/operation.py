"""What a step does to affine maps, if it is affine in the activations that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.serial import compose
from repblocks.errors import NotFoldable
from repblocks.folding.flow import Step


@dataclass(frozen=True, eq=False)
class Located:
    """The map from the channels of a source to those of a step.

    Args:
        map: What the step is of the source.
        axis: Which axis of the step's tensor holds the channels; the others, but for the first,
            are the spatial axes of the map.
        is_viewed: Whether views have rearranged what is not channels; such a map is pointwise.
    """

    map: AffineMap
    axis: int
    is_viewed: bool = False

    def then(self, own: AffineMap, axis: int | None = None) -> Located:
        """Return a map after this one, which expects the channels on an axis, if given.

        Raises:
            NotFoldable: if they lie on another one, or the composition is not exact.
        """
        if axis is not None and self.axis != axis:
            raise NotFoldable("The channels lie on another axis.")
        return self.having(compose(own, self.map))

    def having(self, value: AffineMap) -> Located:
        """Return another map of the same source with the same place of the channels.

        Raises:
            NotFoldable: if it has spatial axes where views have rearranged them.
        """
        if self.is_viewed and value.axes:
            raise NotFoldable("A spatial kernel on what a view has rearranged.")
        return Located(value, self.axis, self.is_viewed)


class Kind(StrEnum):
    """What an operation is to the planner."""

    WEIGHT = "convolution or linear layer"
    NORM = "normalisation"
    SCALE = "scale"
    MOVE = "view"
    OTHER = "sum, selection, pooling, padding"


@dataclass(frozen=True, eq=False)
class Operation:
    """An affine step.

    Args:
        operands: The activations it is affine in, each once.
        apply: From the maps of the operands, which have one source, to that of the step; raises
            ``NotFoldable`` where it would not be exact.
        kind: A ``MOVE`` is the identity on channels, and may stay where it is when what stands
            around it is folded.
        macs: Multiply-adds of the step on the example, as the report counts them.
        through: Steps between the operands and this one that are looked through.
        join: "concat" or "sum" if that is all it does to its operands, each used once; "average"
            if it averages positions of its operand, in windows that depend on their number.
    """

    operands: tuple[Step, ...]
    apply: Callable[[Mapping[Step, Located]], Located]
    kind: Kind
    macs: int = 0
    through: tuple[Step, ...] = ()
    join: str = ""


def bind(step: Step, *names: str, **defaults: Any) -> Mapping[str, Any]:
    """Return the arguments of a step by name."""
    given: dict[str, Any] = dict(defaults)
    given.update(zip([*names, *defaults], step.args, strict=False))
    given.update(step.kwargs)
    return given


def numel(shape: Sequence[int] | None) -> int:
    """Return the number of elements; of an unknown shape 0."""
    total = 0 if shape is None else 1
    for size in shape or ():
        total *= size
    return total
