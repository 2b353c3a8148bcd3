"""The planner against brute force, on random regions of at most eight steps."""

import random
from itertools import product

import pytest

from repblocks.folding.flow import Step
from repblocks.folding.planning import Component, Way


def random_region(seed):
    """Draw steps that read one or two earlier ones, with all ways to compute each."""
    draw = random.Random(seed)
    source = Step(-1, "input", (), {}, "source", None)
    steps = [Step(i, "step", (), {}, str(i), None) for i in range(draw.randint(1, 8))]
    operands = {s: _earlier(draw, steps[: s.number], source) for s in steps}
    readers = {s: [r for r in steps if s in operands[r]] for s in steps}
    required = {s for s in steps if not readers[s] or draw.random() < 0.15}
    known, interiors, layers, convs = {}, {source: {}}, set(), set()
    for step in steps:
        if draw.random() < 0.6:
            layers.add(step)
            convs |= {step} if draw.random() < 0.7 else set()
        cost = (draw.randint(0, 9), 1, int(step in layers), int(step in convs))
        known[step] = [Way(step, tuple(operands[step]), cost)]
        options = [_options(o, interiors, required) for o in operands[step]]
        common = [s for s in [source, *steps] if all(s in other for other in options)]
        interiors[step] = {
            s: frozenset({step}).union(*(other[s] for other in options)) for s in common
        }
        for other, interior in interiors[step].items():
            kinds = {s in convs for s in interior & layers}
            if len(kinds) == 1:  # a convolution and a linear layer never become one
                cost = (draw.randint(0, 25), draw.randint(0, 2), 1, int(kinds.pop()))
                known[step].append(Way(step, (other,), cost, object(), interior - {step}))
    return known, readers, required


def _earlier(draw, steps, source):
    return draw.sample([*steps, source], k=min(len(steps) + 1, draw.choice((1, 1, 2))))


def _options(operand, interiors, required):
    return {operand: frozenset(), **({} if operand in required else interiors[operand])}


def cheapest(known, required):
    """Try every set of materialised steps, and for each the cheapest way of every member."""
    free = [step for step in known if step not in required]
    most = [sum(ways[0].cost[part] for ways in known.values()) for part in (2, 3)]
    best = None
    for chosen in product((False, True), repeat=len(free)):
        given = required | {s for s, is_in in zip(free, chosen, strict=True) if is_in}
        total = _cost(known, given)
        fits = total is not None and total[2] <= most[0] and total[3] <= most[1]
        if fits and (best is None or total < best):
            best = total
    return best


def _cost(known, given):
    total = (0, 0, 0, 0)
    for step in given:
        costs = [
            way.cost
            for way in known[step]
            if all(s in given or s not in known for s in way.sources)
            if not way.inside & given
        ]
        if not costs:
            return None
        total = tuple(a + b for a, b in zip(total, min(costs), strict=True))
    return total


@pytest.mark.parametrize("block", range(20))
def test_no_plan_is_cheaper(block):
    for seed in range(100 * block, 100 * (block + 1)):
        known, readers, required = random_region(seed)
        found = Component(known, readers, required).solve()
        assert found.cost == cheapest(known, required), seed
