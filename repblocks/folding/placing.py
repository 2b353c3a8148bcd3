"""Plan one program and find places for its layers, moving scales and shifts to where they fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

from repblocks.folding.flow import Flow, Step
from repblocks.folding.planning import Plan, plan
from repblocks.folding.pulling import Push
from repblocks.folding.pushing import BACK, FORWARD, Move, push, undo
from repblocks.folding.region import Region
from repblocks.folding.rewriting import Placed, place
from repblocks.folding.sites import Sites
from repblocks.folding.transposed import (
    TakenIn,
    is_transposed,
    macs_of_transposed,
    transposed,
)
from repblocks.folding.users import Users


@dataclass(frozen=True, eq=False)
class Placing:
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
        return macs_of(self.region, self.folded)

    @property
    def whole(self) -> list[str]:
        """The opaque modules that are gone."""
        return [step.path for step in self.folded if step.is_opaque]

    def with_all(self, more: Iterable[Placed]) -> Placing:
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


def macs_of(region: Region, folded: Set[Step] = frozenset()) -> int:
    """Count the multiply-adds of a flow, without opaque modules that are not among the folded."""
    known = region.operations.items()
    own = sum(o.macs for step, o in known if not step.is_opaque or step in folded)
    return own + sum(map(macs_of_transposed, filter(is_transposed, region.readers)))


def plan_and_place(flow: Flow, region: Region, users: Users) -> Placing:
    """Plan a flow; move what is left over back, as far as it goes, or forward once, and plan anew.

    What no layer takes in goes back to where it was, before anything else is moved.
    """
    result = _settle(flow, region, users, [])
    tried: set[Step] = set()

    def move(moves: Sequence[Move]) -> bool:
        nonlocal result
        new = push(flow, region, result.folded | tried, moves)
        if new:
            tried.update(one.step for one in new)
            result = _settle(flow, region, users, [*result.pushed, *new])
        return bool(new)

    while True:
        before = len(tried)
        while move(BACK):
            pass
        result = _without_lost(result, users)
        move(FORWARD)
        result = _without_lost(result, users)
        if len(tried) == before:
            return result


def _without_lost(result: Placing, users: Users) -> Placing:
    lost, flow, region = result.lost, result.flow, result.region
    if not lost:
        return result
    return _settle(flow, region, users, undo(flow, region, result.pushed, lost))


def _settle(flow: Flow, region: Region, users: Users, pushed: list[Push]) -> Placing:
    """Plan a region; where there is no place for a layer, plan anew without it."""
    sites = Sites(flow, region, users)
    while True:
        chosen = plan(region)
        placed, refused = place(sites, chosen)
        if not refused:
            return Placing(flow, region, chosen, placed, pushed, sites)
        for step, reason in refused.items():
            region.candidates[step].remove(chosen.chosen[step])
            region.unplaced |= dict.fromkeys(chosen.chosen[step].interior, reason)
