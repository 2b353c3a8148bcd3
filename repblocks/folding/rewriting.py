"""Put the layers of a plan into a model, in the place of what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from repblocks.errors import NotFoldable, RepblocksError
from repblocks.folding.flow import MOVED, Scope, Step, is_below
from repblocks.folding.graphs import Edit, as_graph
from repblocks.folding.layers import layer
from repblocks.folding.planning import Plan
from repblocks.folding.region import Candidate, Region
from repblocks.folding.sites import Emptied, Site, Sites


@dataclass(frozen=True, eq=False)
class Placed:
    """A candidate with the place of its layer."""

    step: Step
    candidate: Candidate
    site: Site


def place(sites: Sites, plan: Plan) -> tuple[list[Placed], dict[Step, NotFoldable]]:
    """Find the places of a plan's layers; what has none is returned with the reason."""
    placed: list[Placed] = []
    refused: dict[Step, NotFoldable] = {}
    absorbed = _absorbed(plan, sites.region)
    for step, candidate in plan.chosen.items():
        try:
            placed.append(Placed(step, candidate, sites.find(step, candidate, absorbed)))
        except NotFoldable as error:
            refused[step] = error
    return placed, refused


def _absorbed(plan: Plan, region: Region) -> set[Step]:
    """Return the steps whose value a plan does not need: all that read it compute it anew."""
    sources = {candidate.source for candidate in plan.chosen.values()}
    insides = {step: candidate.interior for step, candidate in plan.chosen.items()}
    found: set[Step] = set()
    for step in reversed(region.operations):
        if step in region.required or step in plan.chosen or step in sources:
            continue
        if all(r in found or step in insides.get(r, ()) for r in region.readers[step]):
            found.add(step)
    return found


def rewrite(model: nn.Module, placed: Sequence[Placed], emptied: Sequence[Emptied]) -> nn.Module:
    """Put all layers in place; the model is changed, and returned unless it is a layer now.

    Args:
        model: The model that was traced.
        placed: The layers with their places.
        emptied: More steps that become the identity.
    """
    # What is inside a module that gives way serves nothing any more.
    whole = [one.site.path for one in placed if one.site.scope is None]
    placed = [one for one in placed if not _is_inside(one.site.path, whole)]
    emptied = [one for one in emptied if not _is_inside(one.step.path, whole)]
    gone = {step for one in placed for step in one.candidate.interior}
    gone |= {one.step for one in emptied}
    edits: dict[Scope, list[Edit]] = {}
    for one in placed:
        new, site = layer(one.candidate), one.site
        if site.scope is None:
            model = put(model, site.path, new)
        elif isinstance(site.result, fx.Node) and isinstance(site.source, fx.Node):
            edits.setdefault(site.scope, []).append(Edit(site.result, site.source, new))
        for empty in site.emptied:
            model = _empty(model, empty, edits)
    for empty in emptied:
        model = _empty(model, empty, edits)
    for scope in sorted(edits, key=lambda scope: -scope.path.count(".") - bool(scope.path)):
        model = put(model, scope.path, as_graph(scope, edits[scope], gone))
    return model


def _is_inside(path: str, outer: Sequence[str]) -> bool:
    return any(path != one and is_below(path, one) for one in outer)


def _empty(model: nn.Module, one: Emptied, edits: dict[Scope, list[Edit]]) -> nn.Module:
    """Make a step the identity: a module in its place, a function in the graph it stands in."""
    if one.step.module is not None:
        return put(model, one.step.path, nn.Identity())
    scope = one.step.scope
    if scope is not None:
        operand = one.operand
        while operand.target == MOVED:
            operand = operand.operands[0]
        result, source = scope.node_of(one.step), scope.node_of(operand)
        if result is None or source is None:
            raise RepblocksError(f"{one.step.path} does not see what it reads.")
        edits.setdefault(scope, []).append(Edit(result, source, None))
    return model


def put(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Put a module at a path, and return the model, which is the module for the empty path."""
    if not path:
        return new
    parent, _, name = path.rpartition(".")
    new.training = False
    model.get_submodule(parent)._modules[name] = new
    return model
