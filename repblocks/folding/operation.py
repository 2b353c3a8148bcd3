"""What a step does to affine maps, if it is affine in the activations that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from repblocks.algebra.affine import AffineMap
from repblocks.folding.flow import Step


@dataclass(frozen=True, eq=False)
class Located:
    """The map from the channels of a source to those of a step.

    Args:
        map: What the step is of the source.
        axis: Which axis of the step's tensor holds the channels; the others, but for the first,
            are the spatial axes of the map.
    """

    map: AffineMap
    axis: int


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
        join: "concat" or "sum" if that is all it does to its operands, each used once.
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
