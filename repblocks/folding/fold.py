"""Fold any model: every affine region becomes one layer, where that costs less.

The model is run once on an example and traced; each affine region of the program is a map of its
source; a plan chooses which values are computed at once; layers take the place of what they
compute; the result is compared with a float64 run of the original.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repblocks.errors import RepblocksError
from repblocks.folding.borrowing import memory_of_weights, own
from repblocks.folding.carrying import carried, carry
from repblocks.folding.flow import Flow, Step, is_below
from repblocks.folding.fold_report import FoldedRegion, FoldReport
from repblocks.folding.leftovers import leftovers
from repblocks.folding.operation import numel
from repblocks.folding.planning import ANY_PRICE, Plan, plan
from repblocks.folding.programs import flows_of
from repblocks.folding.pulling import Push
from repblocks.folding.pushing import BACK, FORWARD, push, undo
from repblocks.folding.recording import evaluation_copy, view_of
from repblocks.folding.region import Region
from repblocks.folding.remaking import remade
from repblocks.folding.rewriting import Placed, place, put, rewrite
from repblocks.folding.sites import Emptied, Sites
from repblocks.folding.state import WritesToWeightsError
from repblocks.folding.transposed import TakenIn, transposed
from repblocks.folding.users import Users
from repblocks.folding.verification import verify as verify_fold


@torch.inference_mode(mode=False)
def fold(
    model: nn.Module,
    example_input: Any = None,
    *,
    verify: bool = True,
    fewest_layers: bool = False,
) -> nn.Module:
    """Return a model that computes the same in evaluation mode, with fewer and cheaper layers.

    Args:
        model: Any module, in any mode; it is not changed.
        example_input: A tensor, or a tuple of the model's positional arguments. Without it only
            what needs no shape is folded, and nothing is verified.
        verify: Compare the result with a float64 run of the original.
        fewest_layers: Count layers before multiply-adds: low-rank pairs, separable convolutions and
            branches of different kernels become one layer each, which costs more; the report says
            how much. A shortcut around several layers stays: to expand it is a matter of those
            layers (:mod:`repblocks.algebra.shortcut`), and they are no affine region.

    Returns:
        A new model in evaluation mode, with the hierarchy and the names of the original wherever
        nothing was folded, and ordinary layers where something was. Its attribute ``fold_report``
        is the :class:`~repblocks.folding.fold_report.FoldReport`.

    Raises:
        VerificationError: if the result is not the same function.
        RepblocksError: if the model's weights were changed (its copies share memory with it).
    """
    versions = _versions(model)
    analysis = _Analysis.of(model, example_input, ANY_PRICE if fewest_layers else 0)
    placed = [one for part in analysis.parts for one in part.placed]
    emptied = [Emptied(p.step, p.join) for part in analysis.parts for p in part.pushed]
    taken_in = [one for part in analysis.parts for one in part.taken_in]
    for one in taken_in:
        put(analysis.model, one.conv.path, one.layer())
    emptied += [gone for one in taken_in for gone in one.emptied]
    folded = rewrite(analysis.model, placed, emptied)
    carry(analysis.attributes, folded)
    own(folded, memory_of_weights(model))
    report = replace(analysis.report, parameters_after=_parameters(folded))
    if verify and example_input is not None:
        report = replace(report, verification=verify_fold(model, folded, example_input))
    _check_unchanged(versions, _versions(model))
    folded.fold_report = report  # type: ignore[assignment] # no tensor and no module
    return folded


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Note which tensors a model holds, and how often each was written to."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {k: (id(t), 0 if t.is_inference() else t._version) for k, t in tensors.items()}


def _check_unchanged(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> None:
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if changed:
        raise RepblocksError(
            f"'{changed[0]}' of the input model was changed while it was folded "
            f"({len(changed)} of {len(before)} tensors). Its copies must share no memory with it: "
            "check its __deepcopy__ and what its forward writes to."
        )


def explain(
    model: nn.Module, example_input: Any = None, *, fewest_layers: bool = False
) -> FoldReport:
    """Return what :func:`fold` would do, and why not more."""
    folded = fold(model, example_input, verify=False, fewest_layers=fewest_layers)
    report: FoldReport = folded.fold_report  # type: ignore[assignment]
    return report


def multiply_adds(model: nn.Module, example_input: Any) -> int:
    """Return what :class:`FoldReport` says of a model, without a fold."""
    _, flows = _programs(model, example_input)
    operations = [pair for flow in flows for pair in Region.of(flow).operations.items()]
    return sum(o.macs for step, o in operations if not step.is_opaque) // _batch(example_input)


@dataclass(frozen=True, eq=False)
class _Placing:
    """One flow with its plan."""

    flow: Flow
    region: Region
    plan: Plan
    placed: list[Placed]
    pushed: list[Push]
    sites: Sites

    @cached_property
    def folded(self) -> set[Step]:
        """The steps that are computed at once."""
        return {step for one in self.placed for step in one.candidate.interior}

    @cached_property
    def taken_in(self) -> list[TakenIn]:
        """What transposed convolutions take in besides."""
        return list(transposed(self.region, self.folded, self.sites))

    @property
    def done(self) -> set[Step]:
        """All steps that are gone."""
        return self.folded.union(*(one.scales for one in self.taken_in))

    @property
    def macs(self) -> int:
        """Multiply-adds; those of an opaque module that stays are counted where it is planned."""
        known = self.region.operations.items()
        return sum(o.macs for step, o in known if not step.is_opaque or step in self.folded)

    @property
    def whole(self) -> list[str]:
        """The opaque modules that are gone."""
        return [step.path for step in self.folded if step.is_opaque]

    def with_all(self, more: Iterable[Placed]) -> _Placing:
        """Return the same with more layers."""
        return replace(self, placed=[*self.placed, *more])

    @property
    def lost(self) -> list[Push]:
        """What was moved to where no layer takes all of it in, at once or after further moves."""
        gone, lost = set(self.folded), []
        for one in reversed(self.pushed):
            if gone.issuperset(one.parts) and self.sites.empties(one.step):
                gone.add(one.step)
            else:
                lost.append(one)
        return lost


@dataclass(frozen=True, eq=False)
class _Analysis:
    model: nn.Module
    parts: list[_Placing]
    report: FoldReport
    attributes: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, model: nn.Module, example_input: Any, layer_price: int) -> _Analysis:
        twin, flows = _programs(model, example_input)
        users = Users.of(twin, flows)
        regions = [Region.of(flow, layer_price) for flow in flows]
        planned = zip(flows, regions, strict=True)
        parts = _outermost([_plan_and_place(*part, users) for part in planned])
        borrowed = memory_of_weights(model)
        parts = [part.with_all(remade(part.sites, twin, part.folded, borrowed)) for part in parts]
        batch = _batch(example_input)
        folded = [_describe(one, part.region, batch) for part in parts for one in part.placed]
        folded += [_describe_taken(one, p.region, batch) for p in parts for one in p.taken_in]
        macs = sum(part.macs for part in parts) // batch
        count = _parameters(twin)
        report = FoldReport(
            tuple(folded),
            tuple(dict.fromkeys(leftovers(twin, [(p.flow, p.sites, p.done) for p in parts]))),
            macs,
            macs - sum(one.macs_before - one.macs_after for one in folded),
            count,
            count + sum(one.parameters_after - one.parameters_before for one in folded),
            tuple(step.path for part in parts for step in part.plan.heuristic),
        )
        return cls(twin, parts, report, carried(twin, users.names.keys()))


def _programs(model: nn.Module, example_input: Any) -> tuple[nn.Module, list[Flow]]:
    """Copy a model, and return the copy with its programs.

    The weights are not copied, as most are replaced, unless the model's code changes them.
    """
    try:
        twin = view_of(model)
        return twin, flows_of(twin, example_input, memory_of_weights(model))
    except WritesToWeightsError:
        twin = evaluation_copy(model)
        return twin, flows_of(twin, example_input)


def _outermost(parts: list[_Placing]) -> list[_Placing]:
    """Drop the programs of what is inside a module that is gone as a whole."""
    gone = [path for part in parts for path in part.whole]
    return [part for part in parts if not any(is_below(part.flow.path, path) for path in gone)]


def _batch(example_input: Any) -> int:
    sizes = [x.shape[0] for x in tree_leaves(example_input) if isinstance(x, Tensor) and x.ndim]
    return max(1, sizes[0]) if sizes else 1


def _plan_and_place(flow: Flow, region: Region, users: Users) -> _Placing:
    """Plan a flow; move what is left over back, then forward, until nothing changes."""
    result = _settle(flow, region, users, [])
    tried: set[Step] = set()
    while True:
        before = len(tried)
        for moves in (BACK, FORWARD):
            while new := push(flow, region, result.folded | tried, moves):
                tried |= {one.step for one in new}
                result = _settle(flow, region, users, [*result.pushed, *new])
            if lost := result.lost:
                result = _settle(flow, region, users, undo(flow, region, result.pushed, lost))
        if len(tried) == before:
            return result


def _settle(flow: Flow, region: Region, users: Users, pushed: list[Push]) -> _Placing:
    """Plan a region; where there is no place for a layer, plan anew without it."""
    sites = Sites(flow, region, users)
    while True:
        chosen = plan(region)
        placed, refused = place(sites, chosen)
        if not refused:
            return _Placing(flow, region, chosen, placed, pushed, sites)
        for step, reason in refused.items():
            region.candidates[step].remove(chosen.chosen[step])
            region.unplaced |= dict.fromkeys(chosen.chosen[step].interior, reason)


def _describe(one: Placed, region: Region, batch: int) -> FoldedRegion:
    steps = sorted(one.candidate.interior, key=lambda step: step.number)
    own = {id(w): w for s in steps if s.module is not None for w in s.module.parameters()}
    names = dict.fromkeys(_name(step) for step in steps)
    value = one.candidate.value.map
    per_output = one.candidate.width
    size = numel(one.step.shape) or value.out_channels
    has_bias = value.bias is not None
    return FoldedRegion(
        one.site.path,
        " + ".join(names),
        tuple(dict.fromkeys(step.path for step in steps if step.module is not None)),
        sum(region.operations[step].macs for step in steps) // batch,
        size * per_output // batch,
        sum(w.numel() for w in own.values()),
        value.out_channels * (per_output + has_bias),
    )


def _describe_taken(one: TakenIn, region: Region, batch: int) -> FoldedRegion:
    steps = [one.conv, *one.scales]
    modules = [step.module for step in steps if step.module is not None]
    return FoldedRegion(
        one.conv.path,
        " + ".join(map(_name, steps)),
        tuple(step.path for step in steps if step.module is not None),
        sum(region.operations[step].macs for step in one.scales) // batch,
        0,
        sum(p.numel() for module in modules for p in module.parameters()),
        sum(p.numel() for p in one.layer().parameters()),
    )


def _name(step: Step) -> str:
    if step.module is not None:
        return type(step.module).__name__
    return getattr(step.target, "__name__", str(step.target))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
