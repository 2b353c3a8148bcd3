"""Say why a BatchNorm was left, from the program alone and not from the plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

from torch import nn

from repblocks.algebra.normalization import is_batch_norm
from repblocks.folding.flow import INPUT, Flow, Step
from repblocks.folding.fold_report import LeftAlone, Reason
from repblocks.folding.operation import Kind
from repblocks.folding.region import Region

#: The first of these that holds on either side of a BatchNorm is its reason.
_ORDER = (Reason.PADDING, Reason.OTHER_READER, Reason.OPAQUE, Reason.NONLINEARITY, Reason.COST)


def leftovers(
    model: nn.Module, analysed: Sequence[tuple[Flow, Region, Set[Step]]]
) -> Iterator[LeftAlone]:
    """Yield each opaque module and each BatchNorm that stays, with the reason.

    Args:
        model: The model before the fold.
        analysed: Its flows with their affine parts, and the steps that were folded.
    """
    seen: set[str] = set()
    for flow, region, folded in analysed:
        seen.update(step.path for step in flow.steps if step.module is not None)
        for step in flow.steps:
            operation = region.operations.get(step)
            if operation is None:
                yield from _not_affine(step, region)
            elif operation.kind is Kind.NORM and step not in folded:
                yield _norm(step, region)
    for path, module in model.named_modules():
        if is_batch_norm(module) and path not in seen:
            yield LeftAlone(path, type(module).__name__, Reason.OPAQUE, "It was not traced.")


def _not_affine(step: Step, region: Region) -> Iterator[LeftAlone]:
    module = step.module
    if module is not None and (step.is_opaque or is_batch_norm(module)):
        reason = Reason.OPAQUE if step.is_opaque else Reason.STATISTICS
        why = "; ".join(region.reasons.get(step, []))
        yield LeftAlone(step.path, type(module).__name__, reason, why)


def _norm(step: Step, region: Region) -> LeftAlone:
    found = {*_before(step, region), *_after(step, region)}
    reason = next((reason for reason in _ORDER if reason in found), Reason.NONLINEARITY)
    name = type(step.target).__name__ if step.module is not None else "batch_norm"
    return LeftAlone(step.path, name, reason)


def _before(step: Step, region: Region) -> Iterator[Reason]:
    """Yield what keeps a step from being folded into what it reads."""
    for operand in region.operations[step].operands:
        yield from _obstacle(operand, region)
        operation = region.operations.get(operand)
        if operation is None:
            continue
        if operand in region.required or len(set(region.readers[operand])) > 1:
            yield Reason.OTHER_READER
        elif operation.kind is Kind.WEIGHT:
            yield Reason.COST
        else:
            yield from _before(operand, region)


def _after(step: Step, region: Region) -> Iterator[Reason]:
    """Yield what keeps a step from being folded into what reads it."""
    readers = list(dict.fromkeys(region.readers[step]))
    if len(readers) > 1:
        yield Reason.OTHER_READER
    for reader in readers:
        yield from _obstacle(reader, region)
        operation = region.operations.get(reader)
        if operation is None or len(readers) > 1 or len(operation.operands) > 1:
            continue
        if any(" pads axis " in reason for reason in region.reasons.get(reader, [])):
            yield Reason.PADDING
        elif operation.kind is Kind.WEIGHT:
            yield Reason.COST
        else:
            yield from _after(reader, region)


def _obstacle(step: Step, region: Region) -> Iterable[Reason]:
    if step in region.operations or step.target == INPUT:
        return []
    return [Reason.OPAQUE if step.is_opaque else Reason.NONLINEARITY]
