"""Move a scale and shift of each channel to where layers take it in.

Back through a concatenation or a sum: ``norm(cat(a, b))`` is ``cat(norm_a(a), norm_b(b))``, and of
a sum each term takes the scale and the first one the shift; back through an average of positions or
a view that keeps the channels; or back from a slice to the whole. Or forward through what averages
or picks positions: ``pool(norm(x))`` is ``norm(pool(x))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor

from repblocks.errors import NotFoldable
from repblocks.folding.fanning import fan
from repblocks.folding.flow import Flow, Step
from repblocks.folding.moves import channels_after, is_view
from repblocks.folding.operation import Kind, Operation, numel
from repblocks.folding.operations import channelwise, identity, scale_and_shift, unary
from repblocks.folding.pulling import Push, channels_of, moved_step, pull, spread
from repblocks.folding.region import Region

Move = Callable[[Flow, Region, Step], Push]


def push(flow: Flow, region: Region, settled: Set[Step], moves: Sequence[Move]) -> list[Push]:
    """Move what is not settled and can be; the flow and the region are changed."""
    found: list[Push] = []
    for step, operation in list(region.operations.items()):
        is_scale = operation.kind in (Kind.NORM, Kind.SCALE) and operation.macs > 0
        join = operation.operands[0]
        taken = any(join is other.join for other in found)
        if is_scale and step not in settled and not taken:
            found += _moved(flow, region, step, moves)
    if found:
        region.describe(flow, dict(region.operations))
    return found


def _moved(flow: Flow, region: Region, step: Step, moves: Sequence[Move]) -> list[Push]:
    for move in moves:
        try:
            return [move(flow, region, step)]
        except Exception:  # noqa: BLE001 # a call that no rule foresaw is not passed
            continue
    return []


def undo(flow: Flow, region: Region, kept: Sequence[Push], lost: Sequence[Push]) -> list[Push]:
    """Take pushes back, and those that were built on them; return the others."""
    operations = dict(region.operations)
    gone: list[Push] = []
    for one in kept:
        if one in lost or any(one.steps & other.steps for other in gone):
            gone.append(one)
    for one in reversed(gone):
        operations.update(one.before)
        for part in one.parts:
            flow.steps.remove(part)
            del operations[part]
    region.describe(flow, {s: operations[s] for s in flow.steps if s in operations})
    return [one for one in kept if one not in gone]


def _is_pushable(join: Step, step: Step, region: Region) -> bool:
    operation = region.operations.get(join)
    return (
        operation is not None
        and (operation.join != "" or is_view(join))
        and join not in region.required
        and set(region.readers[join]) == {step}
        and all(_takes_in(branch, join, region) for branch in operation.operands)
    )


def _takes_in(step: Step, reader: Step, region: Region) -> bool:
    """Tell whether a branch ends in a layer whose output nothing else reads."""
    operation = region.operations.get(step)
    # What was moved in this round has no readers yet: it waits for the next one.
    if operation is None or step in region.required:
        return False
    if set(region.readers.get(step, ())) != {reader}:
        return False
    if operation.kind is Kind.WEIGHT:
        return True
    is_passed = operation.kind in (Kind.NORM, Kind.SCALE, Kind.MOVE) or operation.join != ""
    return is_passed and all(_takes_in(other, step, region) for other in operation.operands)


def _push(flow: Flow, region: Region, step: Step) -> Push:
    of_step = region.operations[step]
    join = of_step.operands[0]
    if not _is_pushable(join, step, region):
        raise NotFoldable("It does not follow branches that take it in.")
    of_join = region.operations[join]
    arithmetic = scale_and_shift(of_step, join)
    factor, shift = _before_view(join, of_join, *arithmetic) if is_view(join) else arithmetic
    parts: list[Step] = []
    start = 0
    for branch in of_join.operands:
        stop = start + channels_of(branch)
        chosen = slice(start, stop) if of_join.join == "concat" else slice(None)
        is_first = of_join.join == "concat" or not parts
        moved = shift[chosen] if is_first else torch.zeros_like(shift)
        macs = min(numel(branch.shape), of_step.macs) if is_first else 0
        part = moved_step(flow, flow.steps.index(join), branch, branch.path)
        region.operations[part] = unary(
            branch, Kind.NORM, channelwise(factor[chosen], moved), 1, macs
        )
        parts.append(part)
        start = stop
    pushed = dict(zip(of_join.operands, parts, strict=True))
    before = {step: of_step, join: of_join}
    region.operations[join] = replace(
        of_join,
        operands=tuple(parts),
        apply=lambda values: of_join.apply({old: values[new] for old, new in pushed.items()}),
    )
    region.operations[step] = identity(join)
    region.operations = {s: region.operations[s] for s in flow.steps if s in region.operations}
    return Push(step, join, tuple(parts), before)


def _before_view(
    view: Step, operation: Operation, factor: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return scale and shift ``(C,)`` as they are before a view that keeps each channel whole."""
    (operand,) = operation.operands
    order = channels_after(view, operand.shape or ())
    if len(set(order.tolist())) != len(factor) or len(order) != channels_of(operand):
        raise NotFoldable("A view that takes the channels apart.")
    places = order.argsort()
    return factor[places], shift[places]


#: What can go back to a layer does so first: of several slices of one value only one at a time.
BACK: Sequence[Move] = (_push, spread)
FORWARD: Sequence[Move] = (fan, pull)
