"""Fold any model: every affine region becomes one layer, where that costs less.

The model is run once on an example and traced; each affine region of the program is a map of its
source; a plan chooses which values are computed at once; layers take the place of what they
compute; the result is compared with a float64 run of the original.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repblocks.blocks import AuxiliaryHeads
from repblocks.errors import VerificationError
from repblocks.folding.accepting import check_example, check_model, unchanged
from repblocks.folding.borrowing import memory_of_weights, own
from repblocks.folding.carrying import attach, carried, carry
from repblocks.folding.flow import Flow, Step, is_below
from repblocks.folding.fold_report import FoldedRegion, FoldReport
from repblocks.folding.leftovers import leftovers
from repblocks.folding.operation import numel
from repblocks.folding.placing import Placing, macs_of, plan_and_place
from repblocks.folding.planning import ANY_PRICE
from repblocks.folding.programs import flows_of
from repblocks.folding.recording import evaluation_copy, view_of
from repblocks.folding.refusing import refuse
from repblocks.folding.region import Region
from repblocks.folding.remaking import remade
from repblocks.folding.rewriting import Placed, put, rewrite
from repblocks.folding.sites import Emptied
from repblocks.folding.state import WritesToWeightsError
from repblocks.folding.transposed import TakenIn
from repblocks.folding.users import Users
from repblocks.folding.verification import verify as verify_fold

#: torch.fx, and the watch over what code reads, change torch's modules for all threads.
_ONE_AT_A_TIME = threading.RLock()


@torch.inference_mode(mode=False)
def fold(
    model: nn.Module,
    example_input: Any = None,
    *,
    verify: bool = True,
    fewest_layers: bool = False,
    fixed_size: bool = False,
) -> nn.Module:
    """Return a model that computes the same in evaluation mode, with fewer and cheaper layers.

    Args:
        model: Any module, in any mode; it is not changed.
        example_input: A tensor, or a tuple of the model's positional arguments. Without it only
            what needs no shape is folded, and nothing is verified.
        verify: Compare the result with a float64 run of the original, and at another size of the
            input with a run in its own dtype.
        fewest_layers: Count layers before multiply-adds: low-rank pairs, separable convolutions and
            branches of different kernels become one layer each, which costs more; the report says
            how much. A shortcut around several layers stays: to expand it is a matter of those
            layers (:mod:`repblocks.algebra.shortcut`), and they are no affine region.
        fixed_size: The inputs are always of the example's size, but for the batch: branches with a
            stride whose outputs are equally many there, if not at every size, become one layer too.
            Padding as TensorFlow's ``SAME`` makes such branches.

    Returns:
        A new model in evaluation mode, with the hierarchy and the names of the original wherever
        nothing was folded, and ordinary layers where something was. Its attribute ``fold_report``
        is the :class:`~repblocks.folding.fold_report.FoldReport`.

    Raises:
        ConfigurationError: if the model is no module or has no values, or the example does not fit.
        VerificationError: if it cannot be told that the result is the same function. Where a part
            is seen not to be, at the example or at another size, that part is left as it is.
        RepblocksError: if the model's weights were changed (its copies share memory with it).
    """
    check_model(model)
    if example_input is not None:
        check_example(model, example_input)
    options = {"layer_price": ANY_PRICE if fewest_layers else 0, "is_fixed": fixed_size}
    refused: dict[str, str] = {}
    with unchanged(model), _ONE_AT_A_TIME:
        while True:
            folded, report = _rewritten(_Analysis.of(model, example_input, options, refused))
            if not verify or example_input is None:
                break
            try:
                verification = verify_fold(model, folded, example_input)
            except VerificationError as error:
                refused |= refuse(model, refused, error)
            else:
                report = replace(report, verification=verification)
                break
    attach(folded, "fold_report", report)
    return folded


def _rewritten(analysis: _Analysis) -> tuple[nn.Module, FoldReport]:
    placed = [one for part in analysis.parts for one in part.placed]
    emptied = [Emptied(p.step, p.join) for part in analysis.parts for p in part.pushed]
    taken_in = [one for part in analysis.parts for one in part.taken_in]
    for one in taken_in:
        put(analysis.twin, one.conv.path, one.layer())
    emptied += [gone for one in taken_in for gone in one.emptied]
    folded = rewrite(analysis.twin, placed, emptied)
    for module in folded.modules():
        if isinstance(module, AuxiliaryHeads):
            module.heads = None  # evaluation mode does not use them
    carry(analysis.attributes, folded)
    own(folded, memory_of_weights(analysis.model))
    return folded, replace(analysis.report, parameters_after=_parameters(folded))


def explain(
    model: nn.Module,
    example_input: Any = None,
    *,
    fewest_layers: bool = False,
    fixed_size: bool = False,
) -> FoldReport:
    """Return what :func:`fold` would do, and why not more."""
    options = {"fewest_layers": fewest_layers, "fixed_size": fixed_size}
    folded = fold(model, example_input, verify=False, **options)
    report: FoldReport = folded.fold_report  # type: ignore[assignment]
    return report


def multiply_adds(model: nn.Module, example_input: Any) -> int:
    """Return what :class:`FoldReport` says of a model, without a fold."""
    _, flows = _programs(model, example_input, {})
    return sum(macs_of(Region.of(flow)) for flow in flows) // _batch(example_input)


@dataclass(frozen=True, eq=False)
class _Analysis:
    model: nn.Module
    twin: nn.Module
    parts: list[Placing]
    report: FoldReport
    attributes: dict[str, dict[str, Any]]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_input: Any,
        options: Mapping[str, Any],
        refused: Mapping[str, str],
    ) -> _Analysis:
        twin, flows = _programs(model, example_input, refused)
        users = Users.of(twin, flows)
        regions = [Region.of(flow, **options) for flow in flows]
        planned = zip(flows, regions, strict=True)
        parts = _outermost([plan_and_place(*part, users) for part in planned])
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
        return cls(model, twin, parts, report, carried(twin, users.names.keys()))


def _programs(
    model: nn.Module, example_input: Any, refused: Mapping[str, str]
) -> tuple[nn.Module, list[Flow]]:
    """Copy a model, and return the copy with its programs.

    The weights are not copied, as most are replaced, unless the model's code changes them.
    """
    try:
        twin = view_of(model)
        return twin, flows_of(twin, example_input, memory_of_weights(model), _in(twin, refused))
    except WritesToWeightsError:
        twin = evaluation_copy(model)
        return twin, flows_of(twin, example_input, refused=_in(twin, refused))


def _in(model: nn.Module, refused: Mapping[str, str]) -> dict[int, str]:
    return {id(model.get_submodule(path)): why for path, why in refused.items()}


def _outermost(parts: list[Placing]) -> list[Placing]:
    """Drop the programs of what is inside a module that is gone as a whole."""
    gone = [path for part in parts for path in part.whole]
    return [part for part in parts if not any(is_below(part.flow.path, path) for path in gone)]


def _batch(example_input: Any) -> int:
    sizes = [x.shape[0] for x in tree_leaves(example_input) if isinstance(x, Tensor) and x.ndim]
    return max(1, sizes[0]) if sizes else 1


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
