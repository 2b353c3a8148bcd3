"""The pictures of a network: all of it in both forms, and one block opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from os.path import commonpath

from torch import Tensor, nn

from repblocks.deployment.page.drawing import draw, draw_small, is_drawable
from repblocks.deployment.page.recording import OUTSIDE, Step, record
from repblocks.deployment.page.svg import paragraph, scrolling, tag
from repblocks.deployment.page.units import Repeat, Unit, part_of, repeats_of, unit_of, units_of
from repblocks.folding.fold_report import FoldReport
from repblocks.folding.switch import FoldedBlock

_KINDS = {
    "conv": "convolution, linear",
    "norm": "normalisation",
    "activation": "activation",
    "join": "sum, product, concatenation",
    "other": "other",
}
#: A block of more steps is no picture to read.
_MOST_STEPS = 40
_ROWS = ("Sequential", "ModuleList", "")


@dataclass(frozen=True, eq=False)
class Recorded:
    """A network and what ran in it."""

    model: nn.Module
    steps: Sequence[Step]

    @classmethod
    def of(cls, model: nn.Module, *inputs: Tensor) -> Recorded:
        """Run a network in evaluation mode once."""
        return cls(model, record(model, *inputs))


def networks(before: Recorded, after: Recorded) -> str:
    """Draw a network in both forms, each as the row of its units.

    Args:
        before: The training form.
        after: The deployed form.
    """
    old = units_of(before.model, before.steps)
    known = {unit.path for unit in old if unit.kind}
    new = units_of(after.model, after.steps, known)
    return _network("Training form", before, old) + _network("Deployed form", after, new)


def _network(title: str, recorded: Recorded, units: Sequence[Unit]) -> str:
    repeats = repeats_of(units)
    items = "".join(tag("li", _repeat(one)) for one in repeats)
    layers = sum(step.kind == "conv" for step in recorded.steps)
    count = tag("span", f"{len(recorded.steps)} steps, {layers} convolutions and linear layers")
    heading = tag("figcaption", tag("b", escape(title)) + " " + count)
    return tag("figure", heading + tag("ol", items, class_="strip"), class_="network")


def legend() -> str:
    """Say which colour is what."""
    items = [tag("li", tag("i", class_=kind) + escape(text)) for kind, text in _KINDS.items()]
    return tag("ul", "".join(items), class_="legend")


def opened(
    before: Recorded, after: Recorded, blocks: Sequence[FoldedBlock], fold: FoldReport | None
) -> str:
    """Draw the block in which most was folded, with its branches and after folding.

    Args:
        before: The training form.
        after: The deployed form.
        blocks: What became of each block.
        fold: What a fold of the whole network did.
    """
    paths = dict.fromkeys([block.path for block in blocks] + list(_sites(fold)))
    modules = (
        (old, new)
        for path in paths
        for old, new in [(part_of(m.model, path, m.steps) for m in (before, after))]
        if old and new
    )
    pairs = _readable(modules) or _readable(_regions(before, after, fold))
    if not pairs:
        return ""
    old, new = max(pairs, key=lambda pair: _gain(*pair))
    name = old.path or "the network"
    words = f"{name} ({old.kind})" if old.kind else name
    figures = [
        tag(
            "figure",
            tag("figcaption", tag("b", form) + f" {len(unit.steps)} steps")
            + scrolling(draw(unit, f"{name}: {form}"), f"{name}: {form}"),
        )
        for form, unit in (("training form", old), ("deployed form", new))
    ]
    return paragraph(words) + tag("div", "".join(figures), class_="pair")


def _readable(pairs: Iterable[tuple[Unit, Unit]]) -> list[tuple[Unit, Unit]]:
    return [
        (old, new)
        for old, new in pairs
        if is_drawable(old) and is_drawable(new) and len(old.steps) <= _MOST_STEPS
    ]


def _regions(
    before: Recorded, after: Recorded, fold: FoldReport | None
) -> Iterator[tuple[Unit, Unit]]:
    """Cut the regions of a graph without modules, each with the layer that it became."""
    for region in fold.folded if fold else ():
        numbers = _summed(region.modules, before.steps)
        readers = [step for step in before.steps if numbers and numbers[-1] in step.inputs]
        layers = [
            step.inputs[reader.inputs.index(numbers[-1])]
            for reader in readers[:1]
            for step in after.steps
            if step.path == reader.path and len(step.inputs) == len(reader.inputs)
        ]
        if layers and layers[0] != OUTSIDE:
            name = after.steps[layers[0]].path
            yield (
                unit_of(before.model, region.site, numbers, before.steps),
                unit_of(after.model, name, layers, after.steps),
            )


def _summed(modules: Sequence[str], steps: Sequence[Step]) -> list[int]:
    """Give the steps of modules, and the sums of these with each other and what they read."""
    found = {number for number, step in enumerate(steps) if step.path in modules}
    known = found | {read for number in found for read in steps[number].inputs}
    for number, step in enumerate(steps):
        if step.label == "+" and found & {*step.inputs} and known >= {*step.inputs}:
            found.add(number)
            known.add(number)
    return sorted(found)


def _gain(before: Unit, after: Unit) -> tuple[bool, int]:
    """Count the steps that a fold has saved, and the branches that the input goes into.

    Blocks come before rows of blocks.
    """
    branches = sum(OUTSIDE in step.inputs for step in before.steps)
    return before.kind not in _ROWS, len(before.steps) - len(after.steps) + branches


def _sites(fold: FoldReport | None) -> Iterable[str]:
    """Name the modules that hold all layers of a region, and those one above."""
    for region in fold.folded if fold else ():
        if region.modules:
            parents = [path.rpartition(".")[0] for path in region.modules]
            common = commonpath([path.replace(".", "/") for path in parents]).replace("/", ".")
            yield common
            yield common.rpartition(".")[0]


def _repeat(repeat: Repeat) -> str:
    pictures = "".join(draw_small(unit, _about(unit)) for unit in repeat.units)
    first, last = repeat.units[0], repeat.units[-1]
    is_many = repeat.count > 1
    times = tag("b", f"×{repeat.count}", class_="times") if is_many else ""
    where = f"{first.path} … {repeat.last}" if is_many or first is not last else first.path
    kinds = " ".join(dict.fromkeys(unit.kind for unit in repeat.units if unit.kind))
    shape = "×".join(map(str, last.shape))
    return (
        tag("div", pictures + times, class_="glyphs")
        + tag("code", escape(where or first.steps[0].label))
        + tag("small", escape(" · ".join(filter(None, (kinds, shape)))))
    )


def _about(unit: Unit) -> str:
    return f"{unit.path}: {', '.join(step.label for step in unit.steps)}"
