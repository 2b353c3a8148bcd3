"""Move a scale and shift of each channel forward through what averages or picks positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from repblocks.algebra.affine import AffineMap
from repblocks.errors import NotFoldable
from repblocks.folding.flow import Flow, Step
from repblocks.folding.operation import Kind, Located, Operation, bind, numel
from repblocks.folding.operations import channel_arithmetic, channelwise, identity, unary
from repblocks.folding.region import Region

MOVED = "moved"
_ADAPTIVE = {
    *(nn.AdaptiveAvgPool1d.forward, nn.AdaptiveAvgPool2d.forward, nn.AdaptiveAvgPool3d.forward),
    *(functional.adaptive_avg_pool1d, torch.adaptive_avg_pool1d),
    *(functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d),
}


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


def pull(flow: Flow, region: Region, step: Step) -> Push:
    """Move a scale and shift behind what alone reads it; the flow and the region are changed.

    Raises:
        NotFoldable: if it does more, or something reads it that it cannot pass, or what follows
            cannot take it in.
    """
    of_step = region.operations[step]
    operand = of_step.operands[0]
    passed, read = _only_reader(step, region)
    following = list(dict.fromkeys(region.readers[passed]))
    _check_followed(passed, following, region)
    arithmetic = channel_arithmetic(of_step, operand)
    if arithmetic is None:
        raise NotFoldable("It does more than scale and shift each channel.")
    factor, shift = arithmetic[0], arithmetic[1] * _sum_of_taps(passed, read, region)
    part = Step(passed.number + 0.5, MOVED, (passed,), {}, step.path, None, shape=passed.shape)
    part.storage = passed.storage
    before = {reader: region.operations[reader] for reader in (step, *following)}
    for reader in following:
        old = before[reader]
        operands = tuple(part if one is passed else one for one in old.operands)
        region.operations[reader] = replace(
            old, operands=operands, apply=_reading(old, part, passed)
        )
    region.operations[step] = identity(operand)
    own = channelwise(factor, shift)
    region.operations[part] = unary(passed, Kind.NORM, own, 1, numel(passed.shape))
    flow.steps.insert(flow.steps.index(passed) + 1, part)
    region.operations = {s: region.operations[s] for s in flow.steps if s in region.operations}
    return Push(step, operand, (part,), before)


def _only_reader(step: Step, region: Region) -> tuple[Step, Step]:
    """Return the only operation that reads a step, and through which identity it does."""
    while True:
        readers = set(region.readers[step])
        if len(readers) != 1:
            raise NotFoldable("It has several readers, or none.")
        (reader,) = readers
        operation = region.operations.get(reader)
        if operation is None or operation.kind is not Kind.MOVE or reader.shape != step.shape:
            return reader, step
        step = reader


def _check_followed(passed: Step, following: list[Step], region: Region) -> None:
    """Check that what reads the passed operation is affine, and can be made to read another."""
    operations = [region.operations.get(reader) for reader in following]
    is_shared = passed in region.required and passed in region.operations
    if is_shared or not all(o is not None and not o.through and not o.join for o in operations):
        raise NotFoldable("What follows cannot take it in.")


def _reading(old: Operation, part: Step, passed: Step) -> Callable[..., Located]:
    def apply(values: Mapping[Step, Located]) -> Located:
        return old.apply({passed if s is part else s: value for s, value in values.items()})

    return apply


def _sum_of_taps(passed: Step, read: Step, region: Region) -> Tensor | float:
    """Return what an operation makes of ones, a channel: ``(C,)`` or one number.

    Raises:
        NotFoldable: if it does not treat each channel for itself and all positions alike.
    """
    if _averages(passed):
        return 1.0
    operation = region.operations.get(passed)
    if operation is None or operation.kind is not Kind.OTHER or operation.operands != (read,):
        raise NotFoldable("It does not pass a nonlinearity, nor what mixes channels.")
    if read.shape is None or len(read.shape) < 2:
        raise NotFoldable("Its shape is not known.")
    channels = read.shape[1]
    own = operation.apply({read: Located(AffineMap.identity(channels), 1)}).map
    is_depthwise = torch.equal(own.index, torch.arange(channels).unsqueeze(1))
    if not is_depthwise or own.bias is not None or any(axis.pads for axis in own.axes):
        raise NotFoldable("A shift does not pass what mixes channels, shifts them or pads.")
    return 1.0 if own.weight is None else own.weight().flatten(1).sum(1)


def _averages(step: Step) -> bool:
    """Tell whether a step averages positions, in windows that depend on their number."""
    function = type(step.module).forward if step.module is not None else step.target
    if function in _ADAPTIVE:
        return True
    if function not in (torch.mean, "mean"):
        return False
    given = bind(step, "input", "dim", keepdim=False, dtype=None)
    operand, axes = given["input"], given["dim"]
    if not isinstance(operand, Step) or operand.shape is None or given["dtype"] is not None:
        return False
    ndim = len(operand.shape)
    axes = [axes] if isinstance(axes, int) else axes
    return isinstance(axes, list | tuple) and all(axis % ndim >= 2 for axis in axes)
