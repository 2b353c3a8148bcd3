"""Say why a BatchNorm was left, from the program alone and not from the plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

import torch
from torch import nn
from torch._ops import OpOverload

from repblocks.algebra.normalization import is_batch_norm
from repblocks.folding.flow import INPUT, Flow, Step, has_hooks, is_below
from repblocks.folding.fold_report import LeftAlone, Reason
from repblocks.folding.moves import only_moves
from repblocks.folding.operation import Kind
from repblocks.folding.region import Region
from repblocks.folding.sites import Sites
from repblocks.folding.transposed import is_transposed
from repblocks.folding.users import InUse

#: The first of these that holds on either side of a BatchNorm is its reason.
_ORDER = (Reason.PADDING, Reason.OTHER_READER, Reason.OPAQUE, Reason.NONLINEARITY, Reason.COST)

_UNSEEN = {
    Reason.OPAQUE: "It was not traced.",
    Reason.UNUSED: "No code that the example runs calls it.",
}


def leftovers(
    model: nn.Module, analysed: Sequence[tuple[Flow, Sites, Set[Step]]]
) -> Iterator[LeftAlone]:
    """Yield each opaque module and each BatchNorm that stays, with the reason.

    Args:
        model: The model before the fold.
        analysed: Its flows with the places in them, and the steps that were folded.
    """
    seen: set[int] = set()
    for flow, sites, folded in analysed:
        seen.update(id(step.module) for step in flow.steps if step.module is not None)
        for step in flow.steps:
            operation = sites.region.operations.get(step)
            if operation is None:
                yield from _not_affine(step, sites.region)
            elif operation.kind is Kind.NORM and step not in folded:
                yield _Norm(step, sites).left()
    gone = [step.path for _, _, folded in analysed for step in folded if step.is_opaque]
    unseen = _not_looked_into([flow for flow, _, _ in analysed])
    for path, module in model.named_modules():
        is_gone = id(module) in seen or any(is_below(path, outer) for outer in gone)
        if is_batch_norm(module) and not is_gone:
            is_hidden = any(is_below(path, outer) for outer in unseen)
            reason = Reason.OPAQUE if is_hidden else Reason.UNUSED
            yield LeftAlone(path, type(module).__name__, reason, _UNSEEN[reason])


def _not_looked_into(flows: Sequence[Flow]) -> set[str]:
    """Return the modules of which it is not known what they call; the model itself is ""."""
    opaque = {(flow.path, step.path) for flow in flows for step in flow.steps if step.is_opaque}
    known = {flow.path for flow in flows if (flow.path, flow.path) not in opaque}
    apart = {step.path for flow in flows for step in flow.steps if step.is_apart}
    return ({path for _, path in opaque} - (apart & known)) | ({""} - known)


def _not_affine(step: Step, region: Region) -> Iterator[LeftAlone]:
    module = None if step.is_apart else step.module
    why = "; ".join(region.reasons.get(step, []))
    if module is not None and (step.is_opaque or isinstance(module, torch.jit.ScriptModule)):
        yield LeftAlone(step.path, type(module).__name__, Reason.OPAQUE, why)
    elif module is not None and is_batch_norm(module):
        yield LeftAlone(step.path, type(module).__name__, Reason.STATISTICS, why)
    elif isinstance(step.target, OpOverload) and "norm" in str(step.target):
        yield LeftAlone(step.path, str(step.target), Reason.OPAQUE, why)


class _Norm:
    """One BatchNorm that stays, and what stands around it."""

    def __init__(self, step: Step, sites: Sites) -> None:
        self._step, self._sites, self._region = step, sites, sites.region

    def left(self) -> LeftAlone:
        """Return the report's entry."""
        found: dict[Reason, str] = {}
        for reason, detail in (*self._itself(), *self._before(self._step), *self._after()):
            found[reason] = found.get(reason) or detail
        reason = next((reason for reason in _ORDER if reason in found), Reason.NONLINEARITY)
        name = type(self._step.target).__name__ if self._step.module is not None else "batch_norm"
        return LeftAlone(self._step.path, name, reason, found.get(reason, ""))

    def _itself(self) -> Iterator[tuple[Reason, str]]:
        if self._sites.is_shared(self._step):
            yield Reason.OTHER_READER, "It is called several times."
        refused = self._region.unplaced.get(self._step)
        if refused is not None:
            kind = Reason.OTHER_READER if isinstance(refused, InUse) else Reason.OPAQUE
            yield kind, refused.reason

    def _before(self, step: Step) -> Iterator[tuple[Reason, str]]:
        """Yield what keeps it from being folded into what a step reads."""
        for operand in self._region.operations[step].operands:
            operation = self._region.operations.get(operand)
            if operation is None and not is_transposed(operand):
                yield from _obstacle(operand, self._region)
            elif operand in self._region.required or len(set(self._region.readers[operand])) > 1:
                yield Reason.OTHER_READER, ""
            elif operation is None or operation.kind is Kind.WEIGHT:
                yield from self._layer(operand, step)
            else:
                yield from self._before(operand)

    def _after(self, step: Step | None = None) -> Iterator[tuple[Reason, str]]:
        """Yield what keeps it from being folded into what reads a step."""
        readers = list(dict.fromkeys(self._region.readers[step or self._step]))
        if len(readers) > 1:
            yield Reason.OTHER_READER, ""
        for reader in readers:
            operation = self._region.operations.get(reader)
            if operation is None:
                yield from _obstacle(reader, self._region)
            elif len(readers) > 1 or len(operation.operands) > 1:
                continue
            elif any(" pads axis " in why for why in self._region.reasons.get(reader, [])):
                yield Reason.PADDING, ""
            elif operation.kind is Kind.WEIGHT:
                yield from self._layer(reader, reader)
            else:
                yield from self._after(reader)

    def _layer(self, layer: Step, second: Step) -> Iterator[tuple[Reason, str]]:
        """Yield why a layer does not take it in; the second of both would be what was composed."""
        scope = layer.scope
        obstacle = None if layer.module is None else self._sites.users.obstacle(layer.module)
        if self._sites.is_shared(layer):
            yield Reason.OTHER_READER, f"{layer.path} is called several times."
        elif obstacle is not None:
            yield Reason.OTHER_READER, obstacle.reason
        elif scope is not None and has_hooks(scope.module):
            yield Reason.OPAQUE, ""
        elif self._step not in self._region.unplaced:
            yield Reason.COST, "; ".join(self._region.reasons.get(second, []))


def _obstacle(step: Step, region: Region) -> Iterable[tuple[Reason, str]]:
    """Return what a step is that is not affine, or not known to be."""
    if step.target == INPUT:
        return []
    if step.is_apart:
        return [(Reason.OTHER_READER, f"{step.path} is called several times.")]
    if step.is_opaque:
        return [(Reason.OPAQUE, "")]
    if only_moves(step):
        unknown = [one for one in step.operands if one not in region.operations]
        behind = [found for one in unknown for found in _obstacle(one, region)]
        return behind or [(Reason.OPAQUE, "; ".join(region.reasons.get(step, [])))]
    # Between the positions that a transposed convolution reads, and around them, are zeros.
    reason = Reason.PADDING if is_transposed(step) else Reason.NONLINEARITY
    return [(reason, "; ".join(region.reasons.get(step, [])))]
