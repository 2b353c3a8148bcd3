"""Move a scale and shift of each channel forward past an average or view, or back from a slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.axis import Axis
from repblocks.errors import NotFoldable
from repblocks.folding.flow import MOVED, Flow, Step
from repblocks.folding.moves import channels_after
from repblocks.folding.operation import Kind, Located, Operation
from repblocks.folding.operations import channelwise, identity, scale_and_shift, unary
from repblocks.folding.region import Region


@dataclass(frozen=True, eq=False)
class Push:
    """One scale and shift that was moved.

    Args:
        step: Where it stood; it is the identity now.
        join: What it was pushed back through, or what it read.
        parts: What stands elsewhere instead.
        before: The operations that were others before.
    """

    step: Step
    join: Step
    parts: tuple[Step, ...]
    before: Mapping[Step, Operation]

    @property
    def steps(self) -> set[Step]:
        """All steps that it made or changed."""
        return {*self.parts, *self.before}


def pull(flow: Flow, region: Region, step: Step) -> Push:
    """Move a scale and shift behind what alone reads it; the flow and the region are changed.

    Raises:
        NotFoldable: if it does more, or something reads it that it cannot pass, or what follows
            cannot take it in.
    """
    of_step = region.operations[step]
    passed, read = _only_reader(step, region)
    if passed not in region.readers:
        raise NotFoldable("It was moved just now.")
    _check_followed(passed, region)
    arithmetic = scale_and_shift(of_step, of_step.operands[0])
    factor, shift = _passed_on(passed, read, region, *arithmetic)
    return _insert(flow, region, step, passed, channelwise(factor, shift))


def spread(flow: Flow, region: Region, step: Step) -> Push:
    """Move what scales and shifts a slice of the channels to before the slice.

    The other channels, which other slices read, stay as they are there.

    Raises:
        NotFoldable: if it does more, or the channels are read by others as well.
    """
    of_step = region.operations[step]
    piece = of_step.operands[0]
    of_piece = region.operations.get(piece)
    if of_piece is None or piece in region.required or set(region.readers.get(piece, ())) != {step}:
        raise NotFoldable("It does not alone read a slice.")
    (whole,) = of_piece.operands[:1]
    if whole in region.required or whole not in region.operations or whole not in region.readers:
        raise NotFoldable("Something that is not affine reads the whole.")
    chosen = _selected(of_piece, whole)
    for other in set(region.readers[whole]) - {piece}:
        if torch.isin(_selected(region.operations[other], whole), chosen).any():
            raise NotFoldable("Something else reads these channels.")
    arithmetic = scale_and_shift(of_step, piece)
    channels = channels_of(whole)
    factor, shift = torch.ones(channels).double(), torch.zeros(channels).double()
    factor[chosen], shift[chosen] = arithmetic
    return _insert(flow, region, step, whole, channelwise(factor, shift))


def _insert(flow: Flow, region: Region, step: Step, passed: Step, own: AffineMap) -> Push:
    """Make a step the identity, and a map of its own of what all readers of another one read."""
    of_step = region.operations[step]
    following = list(dict.fromkeys(region.readers[passed]))
    part = moved_step(flow, flow.steps.index(passed) + 1, passed, step.path)
    before = {reader: region.operations[reader] for reader in (step, *following)}
    for reader in following:
        old = before[reader]
        operands = tuple(part if one is passed else one for one in old.operands)
        region.operations[reader] = replace(
            old, operands=operands, apply=reading(old, part, passed)
        )
    region.operations[step] = identity(of_step.operands[0])
    region.operations[part] = unary(passed, Kind.NORM, own, 1, of_step.macs)
    region.operations = {s: region.operations[s] for s in flow.steps if s in region.operations}
    return Push(step, of_step.operands[0], (part,), before)


def moved_step(flow: Flow, place: int, operand: Step, path: str) -> Step:
    """Insert a step that something moved to, at a place of the program after its operand."""
    before, after = flow.steps[place - 1], flow.steps[place]
    number = (before.number + after.number) / 2
    step = Step(number, MOVED, (operand,), {}, path, None, shape=operand.shape)
    step.storage = operand.storage
    flow.steps.insert(place, step)
    return step


def _only_reader(step: Step, region: Region) -> tuple[Step, Step]:
    """Return the only operation that reads a step, and through which identity it does."""
    while True:
        readers = set(region.readers.get(step, ()))
        if len(readers) != 1 or step in region.outputs:
            raise NotFoldable("It has several readers, or none, or is returned.")
        (reader,) = readers
        operation = region.operations.get(reader)
        if operation is None or operation.kind is not Kind.MOVE or reader.shape != step.shape:
            return reader, step
        step = reader


def _check_followed(passed: Step, region: Region) -> None:
    """Check that what reads the passed operation is affine, and can be made to read another."""
    operations = [region.operations.get(reader) for reader in region.readers[passed]]
    is_shared = passed in region.required or passed in region.outputs
    if is_shared or not all(o is not None and not o.through and not o.join for o in operations):
        raise NotFoldable("What follows cannot take it in.")


def reading(old: Operation, part: Step, passed: Step) -> Callable[..., Located]:
    """Return what an operation does when it reads a part where it read what the part is of."""

    def apply(values: Mapping[Step, Located]) -> Located:
        return old.apply({passed if s is part else s: value for s, value in values.items()})

    return apply


def _passed_on(
    passed: Step, read: Step, region: Region, factor: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return scale and shift ``(C,)`` as they are behind what they pass."""
    operation = region.operations.get(passed)
    if operation is not None and operation.kind is Kind.MOVE and read.shape is not None:
        order = channels_after(passed, read.shape)
        return factor[order], shift[order]
    return factor, shift * sum_of_taps(passed, read, region)


def sum_of_taps(passed: Step, read: Step, region: Region) -> Tensor | float:
    """Return what an operation makes of ones in each channel: ``(C,)`` or one number.

    Raises:
        NotFoldable: if it does not treat each channel for itself and all positions alike.
    """
    operation = region.operations.get(passed)
    if operation is not None and operation.join == "average":
        return 1.0
    if operation is None or operation.kind is not Kind.OTHER or operation.operands != (read,):
        raise NotFoldable("It does not pass a nonlinearity, nor what mixes channels.")
    channels = channels_of(read)
    own = _own_map(operation, read)
    is_depthwise = torch.equal(own.index, torch.arange(channels).unsqueeze(1))
    if not is_depthwise or own.bias is not None or any(axis.pads for axis in own.axes):
        raise NotFoldable("A shift does not pass what mixes channels, shifts them or pads.")
    return 1.0 if own.weight is None else own.weight().flatten(1).sum(1)


def _selected(operation: Operation, whole: Step) -> Tensor:
    """Return the channels that an operation picks, without doing more.

    Raises:
        NotFoldable: if it does more, or reads something else.
    """
    if operation.operands != (whole,):
        raise NotFoldable("It reads something else.")
    own = _own_map(operation, whole)
    is_pick = own.weight is None and own.bias is None and own.index.shape[1] == 1
    is_once = len(set(own.index.flatten().tolist())) == len(own.index)
    if not is_pick or not is_once or any(axis != Axis() for axis in own.axes):
        raise NotFoldable("It does more than pick channels, each once.")
    return own.index.flatten()


def _own_map(operation: Operation, operand: Step) -> AffineMap:
    """Return what an operation does to channels that lie on the second axis, before and after."""
    found = operation.apply({operand: Located(AffineMap.identity(channels_of(operand)), 1)})
    if found.axis != 1 or found.is_viewed:
        raise NotFoldable("A view stands between.")
    return found.map


def channels_of(step: Step) -> int:
    """Return the number of channels of what a step gives.

    Raises:
        NotFoldable: if its shape is not known.
    """
    if step.shape is None or len(step.shape) < 2:
        raise NotFoldable("Its shape is not known.")
    return step.shape[1]
