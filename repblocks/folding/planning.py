"""Choose what is computed at once: the cheapest way to give every value that is needed.

A plan says which affine steps are materialised, and from which source each one is. Its cost counts
multiply-adds first, then values written and, once for each input of the batch, weights read; it may
not have more layers than the program, nor more convolutions. If a layer has a price of its own, it
is added to the multiply-adds. Where every value inside a region has one reader, the cheapest plan
is found by a recursion; values with several readers (and what only leads to them) are enumerated:
each may be materialised once for all, or computed anew for each reader.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice

from repblocks.errors import RepblocksError
from repblocks.folding.flow import Step
from repblocks.folding.layers import weights_of
from repblocks.folding.operation import Kind, numel
from repblocks.folding.region import Candidate, Region

#: So many choices of what to materialise are tried in one region: ten values, each shared or not.
LIMIT = 1 << 10

#: Multiply-adds, values moved, layers, and how many of those are convolutions.
Cost = tuple[int, int, int, int]
_NEVER: Cost = (1 << 92, 0, 1 << 62, 1 << 62)
#: The price of a layer at which no number of multiply-adds is too many to spare one.
ANY_PRICE = 1 << 80


@dataclass(frozen=True, eq=False)
class Way:
    """One way to compute a step: at once by a candidate, or as it is written.

    The steps ``inside`` are not materialised then.
    """

    step: Step
    sources: tuple[Step, ...]
    cost: Cost
    candidate: Candidate | None = None
    inside: frozenset[Step] = frozenset()


@dataclass(eq=False)
class Plan:
    """What is computed at once.

    Args:
        chosen: The candidate of each step that is computed at once, in the order of the program.
        heuristic: A step of each region with too many shared values to try all choices: there
            each shared value is materialised.
    """

    chosen: dict[Step, Candidate] = field(default_factory=dict)
    heuristic: list[Step] = field(default_factory=list)


def plan(region: Region) -> Plan:
    """Return the cheapest plan of a region; the same one on every run."""
    result = Plan()
    used: dict[Step, Way] = {}
    known = {step: list(ways(region, step)) for step in region.operations}
    needed = _needed(known, region)
    # What is needed anyway is read, and not computed anew; else parts would not plan by themselves.
    known = {step: [w for w in of_step if not w.inside & needed] for step, of_step in known.items()}
    for steps in components(region, needed):
        found = Component({step: known[step] for step in steps}, region.readers, needed).solve()
        used.update(found.ways)
        result.heuristic += [steps[-1]] if found.is_heuristic else []
    for step in region.operations:
        candidate = used[step].candidate if step in used else None
        if candidate is not None:
            result.chosen[step] = candidate
    return result


def _needed(known: Mapping[Step, Sequence[Way]], region: Region) -> set[Step]:
    """Return the steps that every plan materialises.

    Those are the required ones, those that are inside of no way, and those that a needed step reads
    whichever way it is computed; ways around needed steps are none.
    """
    found = set(region.required)
    count = -1
    while len(found) > count:
        count = len(found)
        insides = {
            step: [way.inside for way in known[step] if not way.inside & found] for step in known
        }
        spared = frozenset().union(*(inside for of_step in insides.values() for inside in of_step))
        found |= known.keys() - spared
        for step in reversed(region.operations):
            readers = [reader for reader in region.readers[step] if reader in found]
            if any(all(step not in inside for inside in insides[r]) for r in readers):
                found.add(step)
    return found


def components(region: Region, needed: Set[Step]) -> list[list[Step]]:
    """Return groups of steps that must be planned together, each in the order of the program."""
    parent = {step: step for step in region.operations}

    def find(step: Step) -> Step:
        while parent[step] is not step:
            parent[step] = parent[parent[step]]
            step = parent[step]
        return step

    for step, operation in region.operations.items():
        for operand in operation.operands:
            if operand in parent and operand not in needed:
                parent[find(operand)] = find(step)
    groups: dict[Step, list[Step]] = {}
    for step in region.operations:
        groups.setdefault(find(step), []).append(step)
    return list(groups.values())


@dataclass(frozen=True, eq=False)
class Solution:
    """The cheapest ways of one component.

    Args:
        cost: What they cost together.
        ways: How each step that is materialised is computed.
        is_heuristic: Whether there were too many choices to try all.
    """

    cost: Cost
    ways: Mapping[Step, Way]
    is_heuristic: bool = False


class Component:
    """Steps that are planned together.

    Args:
        known: The ways to compute each, in the order of the program; as it is written comes first.
        readers: Who reads each.
        required: Those that must be materialised.
    """

    def __init__(
        self,
        known: Mapping[Step, Sequence[Way]],
        readers: Mapping[Step, Sequence[Step]],
        required: Set[Step],
    ) -> None:
        self._known = known
        self._readers = readers
        self._targets = [step for step in known if step in required]
        self._free = [step for step in known if step not in required]
        self._layers = [sum(ways[0].cost[part] for ways in known.values()) for part in (2, 3)]

    def solve(self) -> Solution:
        """Return the cheapest ways that have no more layers than the program."""
        choices = list(islice(self._choices(self._free[::-1], frozenset()), LIMIT + 1))
        is_heuristic = len(choices) > LIMIT
        best: Solution | None = None
        for absent in choices[:1] if is_heuristic else choices:
            kept = [s for s in self._free if self._is_shared(s, absent) and s not in absent]
            for is_thrifty in (False, True):  # where the cheapest has too many layers
                found = _Choice(self._known, absent, is_thrifty).solve([*self._targets, *kept])
                fits = all(map(operator.le, found.cost[2:], self._layers))
                if fits and (best is None or found.cost < best.cost):
                    best = found
                if fits:
                    break
        if best is None:
            raise RepblocksError("A program that has no plan cannot have been run.")
        return Solution(best.cost, best.ways, is_heuristic)

    def _choices(
        self, undecided: Sequence[Step], absent: frozenset[Step]
    ) -> Iterator[frozenset[Step]]:
        """Yield which shared steps are not materialised, readers first; at first all are."""
        for place, step in enumerate(undecided):
            if self._is_shared(step, absent):
                rest = undecided[place + 1 :]
                yield from self._choices(rest, absent)
                yield from self._choices(rest, absent | {step})
                return
        yield absent

    def _is_shared(self, step: Step, absent: Set[Step]) -> bool:
        """Tell whether several steps may be computed from a step: through an absent reader too."""
        readers = list(dict.fromkeys(self._readers[step]))
        return len(readers) > 1 or (len(readers) == 1 and readers[0] in absent)


class _Choice:
    """The cheapest ways where it is settled which shared steps are not materialised.

    The thrifty choice is the cheapest of those with the fewest layers.
    """

    def __init__(
        self, known: Mapping[Step, Sequence[Way]], absent: Set[Step], is_thrifty: bool
    ) -> None:
        self._is_thrifty = is_thrifty
        self._known = known
        self._absent = absent
        self._given: set[Step] = set()
        self._best: dict[Step, tuple[Cost, Way | None]] = {}

    def solve(self, given: Sequence[Step]) -> Solution:
        """Return the ways of all steps that are materialised, if these are given to all."""
        self._given = set(given)
        total: Cost = (0, 0, 0, 0)
        used: dict[Step, Way] = {}
        for step in given:
            total = _sum(total, self._cost(step))
            self._collect(step, used)
        return Solution(total, used)

    def _cost(self, step: Step) -> Cost:
        if step not in self._best:
            best: tuple[Cost, Way | None] = (_NEVER, None)
            for way in self._known[step]:
                if way.inside & self._given:
                    continue
                cost = way.cost
                for source in way.sources:
                    cost = _sum(cost, self._cost_of_source(source))
                if self._order(cost) < self._order(best[0]):
                    best = (cost, way)
            self._best[step] = best
        return self._best[step][0]

    def _order(self, cost: Cost) -> tuple[int, ...]:
        return (cost[2] + cost[3], *cost) if self._is_thrifty else cost

    def _cost_of_source(self, source: Step) -> Cost:
        if source in self._absent:
            return _NEVER
        if source in self._given or source not in self._known:
            return (0, 0, 0, 0)
        return self._cost(source)

    def _collect(self, step: Step, used: dict[Step, Way]) -> None:
        way = self._best[step][1]
        if way is None:
            return
        used[step] = way
        for source in way.sources:
            if source in self._known and source not in self._given:
                self._collect(source, used)


def ways(region: Region, step: Step) -> Iterable[Way]:
    """Return the ways to compute a step; as it is written comes first, so that it wins a tie."""
    operation = region.operations[step]
    size = numel(step.shape)
    moved = 0 if operation.kind is Kind.MOVE else size
    layers = int(operation.kind is Kind.WEIGHT)
    convs = 0
    if layers:
        convs = int(any(w.ndim > 2 for w in weights_of(step)))
        moved += region.batch * sum(w.numel() for w in weights_of(step) if w.ndim > 1)
    macs = operation.macs + layers * region.layer_price
    yield Way(step, operation.operands, (macs, moved, layers, convs))
    for candidate in region.candidates[step]:
        if candidate.layers and len(candidate.interior) > 1 and is_layer(step, candidate):
            size = numel(step.shape) or candidate.value.map.out_channels
            weights = candidate.value.map.out_channels * candidate.width
            macs = size * candidate.width + region.layer_price
            is_conv = bool(candidate.value.map.axes)
            moved = size + candidate.moved + region.batch * weights
            cost = (macs, moved, 1, int(is_conv))
            yield Way(step, (candidate.source,), cost, candidate, candidate.interior - {step})


def is_layer(step: Step, candidate: Candidate) -> bool:
    """Tell whether one convolution or linear layer can give what a candidate gives."""
    axes, shape = candidate.value.map.axes, candidate.source.shape
    if shape is None and candidate.layers > 1 and any(axis.stride > 1 for axis in axes):
        return False  # where there is no example, nobody knows which of the two sizes counts
    if axes:
        return candidate.start == 1 == candidate.value.axis
    # From another axis, views inside have to stay: the place of the layer is then found, or not.
    value = candidate.value
    return value.is_viewed or value.axis in (-1, len(step.shape or ()) - 1)


def _sum(one: Cost, other: Cost) -> Cost:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3])
