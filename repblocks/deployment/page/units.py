"""Cut a recording into units that follow each other: the stem, each block, the head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import nn

from repblocks.blocks import RepBlock
from repblocks.deployment.page.recording import OUTSIDE, Step

#: What does not run in a row and has more steps is cut nevertheless.
_MOST_STEPS = 60
#: So many steps in a row are not cut.
_SHORT = 8
#: How many units may take turns.
_PERIODS = (1, 2, 3)


@dataclass(frozen=True)
class Unit:
    """A part of a network, with what stands in it alone.

    Args:
        path: Its module, or the first of its layers.
        kind: The name of its class; empty for layers in a row.
        steps: With the numbers of their inputs in this unit.
    """

    path: str
    kind: str
    steps: tuple[Step, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its output, without the batch."""
        return self.steps[-1].shape

    @property
    def form(self) -> tuple[object, ...]:
        """What it has in common with units that look like it: all but the channels inside."""
        looks = [(s.kind, s.label, s.detail.partition(", ")[2], s.inputs) for s in self.steps]
        return self.kind, self.shape, *looks


@dataclass(frozen=True)
class Repeat:
    """Units in a row that stand there several times.

    Args:
        units: The first of them; one, or some that take turns.
        count: How often.
        last: The path of the very last unit.
    """

    units: tuple[Unit, ...]
    count: int
    last: str


def units_of(model: nn.Module, steps: Sequence[Step], known: Collection[str] = ()) -> list[Unit]:
    """Cut a recording into units.

    Args:
        model: The network that was recorded.
        steps: What ran in it.
        known: Modules that are units already, as they are in another form of the network.
    """
    parts = _split(model, "", range(len(steps)), steps, known)
    return [unit_of(model, path, numbers, steps) for path, numbers in _merged(parts, steps)]


def repeats_of(units: Sequence[Unit]) -> list[Repeat]:
    """Tell once what stands there several times in a row."""
    forms = [unit.form for unit in units]
    repeats, start = [], 0
    while start < len(units):
        counts = {period: _count(forms[start:], period) for period in _PERIODS}
        period = max(_PERIODS, key=lambda p: p * counts[p] if counts[p] > 1 or p == 1 else 0)
        end = start + period * counts[period]
        repeats.append(
            Repeat(tuple(units[start : start + period]), counts[period], units[end - 1].path)
        )
        start = end
    return repeats


def _count(forms: Sequence[object], period: int) -> int:
    """Count how often the first forms stand at the start, one time after the other."""
    count = 1
    while forms[count * period : (count + 1) * period] == forms[:period]:
        count += 1
    return count


def part_of(model: nn.Module, path: str, steps: Sequence[Step]) -> Unit | None:
    """Give what ran in one module, if something did."""
    inside = f"{path}." if path else ""
    numbers = [n for n, step in enumerate(steps) if f"{step.path}.".startswith(inside)]
    return unit_of(model, path, numbers, steps) if numbers else None


Part = tuple[str, Sequence[int]]


def _split(
    module: nn.Module,
    path: str,
    numbers: Sequence[int],
    steps: Sequence[Step],
    known: Collection[str],
) -> list[Part]:
    """Cut a module where its children run one after the other."""
    groups = _groups(path, numbers, steps)
    is_short = len(numbers) <= _SHORT and _is_row([(path, [n]) for n in numbers], steps)
    is_flat = is_short or all(len(part) == 1 for _, part in groups)
    holds_more = any(other != path and other.startswith(f"{path}.") for other in known)
    is_whole = path in known or isinstance(module, RepBlock) or (is_flat and not holds_more)
    is_row = _is_row(groups, steps) or (len(numbers) > _MOST_STEPS) or not path
    if (is_whole and path) or not is_row:
        return [(path, numbers)]
    return [
        part
        for child, inner in groups
        for part in (
            _split(module.get_submodule(_below(path, child)), child, inner, steps, known)
            if child != path and len(inner) > 1
            else [(child, inner)]
        )
    ]


def _groups(path: str, numbers: Sequence[int], steps: Sequence[Step]) -> list[Part]:
    """Group steps by the child that they stand in; a module's own ones are alone."""
    found: dict[tuple[str, int], list[int]] = {}
    for number in numbers:
        below = _below(path, steps[number].path)
        child = below.split(".")[0]
        key = (f"{path}.{child}".lstrip("."), 0) if child else (path, number)
        found.setdefault(key, []).append(number)
    return [(name, part) for (name, _), part in found.items()]


def _is_row(groups: Sequence[Part], steps: Sequence[Step]) -> bool:
    """Tell whether each group reads one value, which the group before has made."""
    before: set[int] | None = None
    for _, part in groups:
        own = set(part)
        outside = {read for number in part for read in steps[number].inputs} - own
        if len(outside) != 1 or (before is not None and not outside <= before):
            return False
        before = own
    return True


def _merged(parts: Sequence[Part], steps: Sequence[Step]) -> list[Part]:
    """Put layers in a row together, from each convolution to the next."""
    merged: list[Part] = []
    is_open = False
    for path, numbers in parts:
        is_single = len(numbers) == 1
        if is_open and is_single and steps[numbers[0]].kind != "conv":
            merged[-1] = (merged[-1][0], [*merged[-1][1], *numbers])
        else:
            merged.append((path, numbers))
        is_open = is_single
    return merged


def unit_of(model: nn.Module, path: str, numbers: Sequence[int], steps: Sequence[Step]) -> Unit:
    """Give some of the steps, under the name of a module or of one of them."""
    places = {number: place for place, number in enumerate(numbers)}
    own = [
        replace(
            steps[number],
            inputs=tuple(dict.fromkeys(places.get(r, OUTSIDE) for r in steps[number].inputs)),
        )
        for number in numbers
    ]
    is_module = len({step.path for step in own}) > 1 and all(
        f"{step.path}.".startswith(f"{path}.") for step in own
    )
    kind = type(model.get_submodule(path)).__name__ if is_module else ""
    return Unit(path, kind, tuple(own))


def _below(path: str, name: str) -> str:
    return name.removeprefix(path).lstrip(".")
