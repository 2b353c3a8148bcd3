"""Move a scale and shift of each channel forward on every path to the layers that take it in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from repblocks.algebra.affine import AffineMap
from repblocks.errors import NotFoldable
from repblocks.folding.averages import averaged
from repblocks.folding.flow import Flow, Step
from repblocks.folding.moves import channels_after
from repblocks.folding.operation import Kind, Located, Operation
from repblocks.folding.operations import channelwise, identity, scale_and_shift, unary
from repblocks.folding.pulling import Push, moved_step, reading, sum_of_taps
from repblocks.folding.region import Region


@dataclass(frozen=True, eq=False)
class _Carried:
    """A scale and shift on its way.

    Args:
        read: What it scales.
        axis: Where the channels lie there.
        factor: ``(C,)``.
        shift: ``(C,)``.
    """

    read: Step
    axis: int
    factor: Tensor
    shift: Tensor


def fan(flow: Flow, region: Region, step: Step) -> Push:
    """Move a scale and shift to before each layer that its value comes to; both are changed.

    Raises:
        NotFoldable: if it does more, or the value comes to something that does not take it in.
    """
    of_step = region.operations[step]
    arithmetic = scale_and_shift(of_step, of_step.operands[0])
    ends = list(_ends(_Carried(step, 1, *arithmetic), region))
    before = {one: region.operations[one] for one in (step, *(reader for reader, _ in ends))}
    # One of them counts for all, as the report counts what the code does.
    parts = tuple(
        _put(flow, region, step.path, reader, end, 0 if number else of_step.macs)
        for number, (reader, end) in enumerate(ends)
    )
    region.operations[step] = identity(of_step.operands[0])
    region.operations = {s: region.operations[s] for s in flow.steps if s in region.operations}
    return Push(step, of_step.operands[0], parts, before)


def _ends(carried: _Carried, region: Region) -> Iterator[tuple[Step, _Carried]]:
    """Find the layers, and norms before them, that a value comes to."""
    if carried.read in region.required or carried.read not in region.readers:
        raise NotFoldable("Something reads it that is not affine, or it was moved just now.")
    for reader in dict.fromkeys(region.readers[carried.read]):
        operation = region.operations.get(reader)
        if operation is None or operation.operands != (carried.read,) or operation.through:
            raise NotFoldable("It comes to a sum, or to something that looks further back.")
        if operation.kind in (Kind.WEIGHT, Kind.NORM):
            yield reader, carried
        else:
            yield from _ends(_passed(carried, reader, region), region)


def _passed(carried: _Carried, reader: Step, region: Region) -> _Carried:
    """Return a scale and shift as it is behind what reads it."""
    operation = region.operations[reader]
    if operation.kind is Kind.MOVE:
        return _viewed(carried, reader, operation)
    try:
        return replace(carried, read=reader, axis=averaged(reader, carried.axis))
    except NotFoldable:
        if carried.axis != 1:
            raise
    taps = sum_of_taps(reader, carried.read, region)
    return replace(carried, read=reader, shift=carried.shift * taps)


def _viewed(carried: _Carried, view: Step, operation: Operation) -> _Carried:
    start = Located(AffineMap.identity(len(carried.factor)), carried.axis)
    try:
        found = operation.apply({carried.read: start})
    except NotFoldable:
        if carried.axis != 1 or carried.read.shape is None:
            raise
        order = channels_after(view, carried.read.shape)
        return _Carried(view, 1, carried.factor[order], carried.shift[order])
    return replace(carried, read=view, axis=found.axis)


def _put(flow: Flow, region: Region, path: str, reader: Step, end: _Carried, macs: int) -> Step:
    """Let a reader read a map of its own of what it reads."""
    part = moved_step(flow, flow.steps.index(reader), end.read, path)
    old = region.operations[reader]
    region.operations[reader] = replace(old, operands=(part,), apply=reading(old, part, end.read))
    own = channelwise(end.factor, end.shift)
    region.operations[part] = unary(end.read, Kind.NORM, own, end.axis, macs)
    return part
