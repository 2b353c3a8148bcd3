"""The affine part of a flow: which steps it holds, who reads them, what each is of its sources."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from torch import nn

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Pairs
from repblocks.errors import NotFoldable
from repblocks.folding import arithmetic, moves, products  # noqa: F401 # fill the table of operations
from repblocks.folding.aligning import aligned
from repblocks.folding.averages import average
from repblocks.folding.flow import INPUT, Flow, Step, steps_in
from repblocks.folding.operation import Kind, Located, Operation
from repblocks.folding.operations import describe
from repblocks.folding.probing import probe

_SIZES = {"shape", "ndim", "dtype", "device", "size", "dim", "numel", "ndimension", "is_cuda"}
_READ_SHAPE_OF_OTHER = {"reshape_as", "view_as", "expand_as", "type_as"}
#: More sources than this are not tried for one step: the nearest ones are.
_SOURCES = 12

Key = tuple[Step, int]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to compute a step at once, from a source.

    Args:
        source: What is read.
        start: The axis of the source that holds the channels.
        value: The step as a map of the source.
        interior: The steps that are then computed by it, the step itself among them.
        layers: How many convolutions and linear layers are among them.
    """

    source: Step
    start: int
    value: Located
    interior: frozenset[Step]
    layers: int

    @cached_property
    def width(self) -> int:
        """Multiply-adds for one output value."""
        value = self.value.map
        groups = value.groups if value.axes else 1
        is_widened = self.padding_before is None and not self.is_same
        axes = [axis.symmetric() if is_widened else axis for axis in value.axes]
        return value.in_channels // groups * prod(axis.size for axis in axes)

    @cached_property
    def is_same(self) -> bool:
        """Whether a layer that says ``padding="same"`` stays one: its padding is that still."""
        says_so = any(getattr(step.module, "padding", "") == "same" for step in self.interior)
        axes = self.value.map.axes
        return says_so and all(axis.is_same for axis in axes) and not _are_even(axes)

    @cached_property
    def padding_before(self) -> Pairs | None:
        """What is put around the source, where a layer cannot: more on one side than on the other.

        There is none where it spares no layer, or crops: the layer gets taps of zero instead.
        """
        axes = self.value.map.axes
        pairs = tuple((axis.low, axis.high) for axis in axes)
        is_cropped = any(side < 0 for pair in pairs for side in pair)
        is_pointless = is_cropped or self.layers < 2 or self.is_same or _are_even(axes)
        return None if is_pointless else pairs

    @cached_property
    def moved(self) -> int:
        """Values that are written before the layer runs: the source with its padding."""
        if self.padding_before is None:
            return 0
        shape = self.source.shape or (1, self.value.map.in_channels)
        around = [low + high for low, high in self.padding_before]
        return prod(shape[:2]) * prod(map(operator.add, shape[2:], around))


def _are_even(axes: Iterable[Axis]) -> bool:
    return all(axis.is_even for axis in axes)


@dataclass(eq=False)
class Region:
    """The affine steps of a flow.

    Args:
        operations: What each of them does, in the order of the program.
        readers: The steps that read the value of each step.
        required: Those whose own value is needed: nothing, or something not affine, reads it.
        outputs: The steps, affine or not, that the flow returns.
        candidates: The ways to compute each one at once.
        reasons: Why a step is not affine, or why it does not compose with what is before it.
        unplaced: Why there was no place for a layer that computes a step with others.
        batch: Inputs of the example, over which the cost of reading a weight is shared.
        layer_price: Multiply-adds that one layer fewer is worth.
        is_fixed: Whether the sizes of the example are those of all inputs.
    """

    operations: dict[Step, Operation] = field(default_factory=dict)
    readers: dict[Step, list[Step]] = field(default_factory=dict)
    required: set[Step] = field(default_factory=set)
    outputs: set[Step] = field(default_factory=set)
    candidates: dict[Step, list[Candidate]] = field(default_factory=dict)
    reasons: dict[Step, list[str]] = field(default_factory=dict)
    unplaced: dict[Step, NotFoldable] = field(default_factory=dict)
    batch: int = 1
    layer_price: int = 0
    is_fixed: bool = False

    @classmethod
    def of(cls, flow: Flow, layer_price: int = 0, *, is_fixed: bool = False) -> Region:
        """Find the affine steps of a flow."""
        is_fixed &= flow.is_of_one_size
        region = cls(batch=_batch(flow), layer_price=layer_price, is_fixed=is_fixed)
        described: dict[Step, Operation] = {}
        for step in flow.steps:
            try:
                described[step] = probe(step) if step.is_opaque else _described(step)
            except Exception as error:  # noqa: BLE001 # a call that no rule foresaw is not affine
                region.reasons[step] = [_reason(error)]
        region.describe(flow, described)
        return region

    def describe(self, flow: Flow, described: Mapping[Step, Operation]) -> None:
        """Take these operations, find who reads them, and the ways to compute each."""
        looked_through = _looked_through(flow, described)
        self.operations = {s: o for s, o in described.items() if s not in looked_through}
        self.readers = {step: [] for step in flow.steps}
        self.required = set()
        for step in flow.steps:
            if step in looked_through:
                continue
            known = self.operations.get(step)
            for read in known.operands if known else _values_read(step):
                self.readers[read].append(step)
                if known is None:
                    self.required.add(read)
        self.outputs = set(steps_in(flow.output))
        self.required |= self.outputs
        self.required &= set(self.operations)
        # What nothing reads is run all the same.
        self.required |= {step for step in self.operations if not self.readers[step]}
        self._find_candidates()

    def _find_candidates(self) -> None:
        options: dict[Step, dict[Key, Candidate]] = {}
        for step, operation in self.operations.items():
            found: dict[Key, Candidate] = {}
            of_operands = [self._options(o, step, options) for o in operation.operands]
            keys = [key for key in of_operands[0] if all(key in other for other in of_operands)]
            for key in keys[:_SOURCES]:
                chosen = [other[key] for other in of_operands]
                candidate = self._joined(step, operation, chosen)
                if candidate is not None:
                    found[key] = candidate
            options[step] = found
            self.candidates[step] = list(found.values())

    def _options(
        self, operand: Step, reader: Step, known: Mapping[Step, dict[Key, Candidate]]
    ) -> dict[Key, Candidate]:
        found = {
            (operand, axis): Candidate(
                operand, axis, Located(AffineMap.identity(channels), axis), frozenset(), 0
            )
            for axis, channels in _channels(operand, reader)
        }
        if operand in known and operand not in self.required:
            found.update(known[operand])
        return found

    def _joined(
        self, step: Step, operation: Operation, chosen: Iterable[Candidate]
    ) -> Candidate | None:
        parts = dict(zip(operation.operands, chosen, strict=True))
        values: Mapping[Step, Located] = {operand: one.value for operand, one in parts.items()}
        try:
            value = operation.apply(aligned(values) if self.is_fixed else values)
        except Exception as error:  # noqa: BLE001 # likewise
            reasons = self.reasons.setdefault(step, [])
            if _reason(error) not in reasons:
                reasons.append(_reason(error))
            return None
        first = next(iter(parts.values()))
        interior = frozenset({step}.union(*(part.interior for part in parts.values())))
        layers = sum(self.operations[s].kind is Kind.WEIGHT for s in interior)
        return Candidate(first.source, first.start, value, interior, layers)


def _described(step: Step) -> Operation:
    try:
        return describe(step)
    except NotFoldable:
        found = average(step)
        if found is None:
            raise
        return found


def _reason(error: Exception) -> str:
    if isinstance(error, NotFoldable):
        return error.reason
    first_line = next(iter(str(error).splitlines()), "")
    return f"It is called in a way that is not known ({type(error).__name__}: {first_line})."


def _batch(flow: Flow) -> int:
    shapes = [step.shape for step in flow.steps if step.target == INPUT and step.shape]
    return max(1, shapes[0][0]) if shapes else 1


def _channels(operand: Step, reader: Step) -> list[tuple[int, int]]:
    """Return the axes of an operand that may hold channels, with their sizes."""
    shape = operand.shape
    if shape is not None:
        axes = dict.fromkeys((1, len(shape) - 1))
        return [(axis, shape[axis]) for axis in axes if 0 < axis < len(shape)]
    module = reader.module
    if isinstance(module, nn.Linear):
        return [(-1, module.in_features)]
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return [(1, module.in_channels)]
    return []


def _looked_through(flow: Flow, described: Mapping[Step, Operation]) -> set[Step]:
    """Find the steps that only serve others which look through them."""
    by_step: dict[Step, list[Step]] = {}
    for step in flow.steps:
        for read in step.operands:
            by_step.setdefault(read, []).append(step)
    candidates = {s for operation in described.values() for s in operation.through}
    kept = set(steps_in(flow.output))
    found: set[Step] = set()
    for step in reversed(flow.steps):
        if step not in candidates or step in kept:
            continue
        if all(
            r in found or (r in described and step in described[r].through) for r in by_step[step]
        ):
            found.add(step)
    return found


def _values_read(step: Step) -> list[Step]:
    """Return the steps whose values, not only sizes, a step reads."""
    name: Any = step.target if isinstance(step.target, str) else None
    if (step.target is getattr and step.args[1] in _SIZES) or name in _SIZES:
        return []
    if name in _READ_SHAPE_OF_OTHER:
        return step.operands[:1]
    return step.operands
