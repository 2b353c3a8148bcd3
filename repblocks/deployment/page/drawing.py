"""Draw a part of a network: boxes with names, as the papers do, or small without names."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from repblocks.deployment.page.layering import Layout, lay_out
from repblocks.deployment.page.recording import OUTSIDE, Step
from repblocks.deployment.page.svg import tag
from repblocks.deployment.page.units import Unit

Point = tuple[float, float]


@dataclass(frozen=True)
class _Style:
    """Sizes in pixels; a box with names is as wide as the longest of them."""

    width: float
    height: float
    gap_x: float
    gap_y: float
    margin: float
    has_names: bool


_SMALL = _Style(width=13, height=7, gap_x=4, gap_y=6, margin=5, has_names=False)
_WIDTHS, _HEIGHT = (64.0, 200.0), 36.0
_WIDTH_OF_LETTER = {"label": 7.4, "detail": 5.9}


def draw(unit: Unit, name: str) -> str:
    """Draw a unit with the names of its layers.

    Args:
        unit: What to draw.
        name: What a screen reader says that it is.
    """
    longest = max(
        len(text) * _WIDTH_OF_LETTER[kind] + 16
        for step in unit.steps
        for kind, text in (("label", step.label), ("detail", step.detail))
    )
    width = min(max(longest, _WIDTHS[0]), _WIDTHS[1])
    return _draw(unit, name, _Style(width, _HEIGHT, 16, 22, 10, has_names=True))


def draw_small(unit: Unit, name: str) -> str:
    """Draw a unit as a small picture of its structure."""
    return _draw(unit, name, _SMALL)


def _draw(unit: Unit, name: str, style: _Style) -> str:
    steps = unit.steps
    read_last = {read for step in steps for read in step.inputs}
    ends = [number for number in range(len(steps)) if number not in read_last]
    # Node 0 is the input, the last one the output.
    inputs = [[], *([read + 1 for read in step.inputs] for step in steps)]
    layout = lay_out([*inputs, [number + 1 for number in ends]])
    width = layout.columns * (style.width + style.gap_x) - style.gap_x + 2 * style.margin
    height = layout.rows * (style.height + style.gap_y) - style.gap_y + 2 * style.margin
    # The rows of input and output are points, of no height.
    height -= 2 * style.height
    lines = "".join(_line(edge, layout, style) for edge in layout.edges)
    boxes = "".join(
        _box(step, _at(place, layout, style), style)
        for step, place in zip(steps, layout.places[1:-1], strict=True)
    )
    return tag(
        "svg",
        tag("title", escape(name)) + lines + boxes,
        class_="net" if style.has_names else "net small",
        viewBox=f"0 0 {width:.1f} {height:.1f}",
        width=width,
        height=height,
        role="img",
        aria_label=name,
    )


def _at(place: tuple[float, int], layout: Layout, style: _Style) -> Point:
    """Give the middle of a node."""
    column, row = place
    x = style.margin + style.width / 2 + column * (style.width + style.gap_x)
    y = style.margin + row * (style.height + style.gap_y) - style.height / 2
    y += style.height / 2 if row == 0 else 0
    y -= style.height / 2 if row == layout.rows - 1 else 0
    return x, y


def _line(edge: tuple[tuple[float, int], ...], layout: Layout, style: _Style) -> str:
    """Draw an edge through its points: straight past each row, curved between them."""
    points = [_at(place, layout, style) for place in edge]
    half = style.height / 2
    x, y = points[0]
    path = [f"M{x:.1f} {y:.1f}"]
    for number, (x, y) in enumerate(points[1:]):
        x0, y0 = points[number]
        is_inner = edge[number][1] > 0
        start, end = (y0 + half if is_inner else y0), (y - half)
        end = max(end, start) if edge[number + 1][1] < layout.rows - 1 else y
        middle = (start + end) / 2
        path.append(f"V{start:.1f}")
        path.append(f"C{x0:.1f} {middle:.1f} {x:.1f} {middle:.1f} {x:.1f} {end:.1f}V{y:.1f}")
    return tag("path", d="".join(path))


def _box(step: Step, middle: Point, style: _Style) -> str:
    x, y = middle
    title = tag("title", escape(f"{step.path}: {step.label} {step.detail}".strip(": ")))
    if step.kind == "join" and len(step.label) == 1:
        radius = min(style.height / 2, 13.0) if style.has_names else style.height / 2
        sign = _text(x, y, step.label, "sign") if style.has_names else ""
        return tag("g", title + tag("circle", cx=x, cy=y, r=radius) + sign, class_="join")
    shape = tag(
        "rect",
        x=x - style.width / 2,
        y=y - style.height / 2,
        width=style.width,
        height=style.height,
        rx=6 if style.has_names else 2,
    )
    names = _names(step, x, y, style.width) if style.has_names else ""
    return tag("g", title + shape + names, class_=step.kind)


def _names(step: Step, x: float, y: float, width: float) -> str:
    if not step.detail:
        return _text(x, y, _cut(step.label, width, "label"), "label")
    label = _text(x, y - 7, _cut(step.label, width, "label"), "label")
    return label + _text(x, y + 9, _cut(step.detail, width, "detail"), "detail")


def _text(x: float, y: float, text: str, kind: str) -> str:
    return tag("text", escape(text), x=x, y=y, class_=kind)


def _cut(text: str, width: float, kind: str) -> str:
    most = int((width - 10) / _WIDTH_OF_LETTER[kind])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def is_drawable(unit: Unit) -> bool:
    """Tell whether anything in a unit reads its input."""
    return any(OUTSIDE in step.inputs for step in unit.steps)
