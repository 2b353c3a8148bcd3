"""Plots as SVG whose width is that of the page: places along it are shares, text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from repblocks.deployment.page.svg import Row, scrolling, tag

_HEIGHT, _TOP, _BOTTOM = 260.0, 14.0, 24.0
_LEFT, _RIGHT = 12.0, 98.0
#: Characters of a name under a plot: two of them are narrower than a phone.
_LONGEST = 20

Series = tuple[str, str, Sequence[float]]


def log_plot(name: str, places: Sequence[str], series: Sequence[Series]) -> str:
    """Plot positive numbers on a logarithmic axis, in order.

    Args:
        name: What a screen reader says that it is.
        places: What each number belongs to.
        series: Name, class of the style and as many numbers as places; 0 is drawn at the bottom.
    """
    logs = [math.log10(value) for _, _, values in series for value in values if value > 0]
    low, high = math.floor(min(logs, default=-1)), math.ceil(max(logs, default=0))
    high += low == high
    parts = [_grid(power, low, high) for power in range(low, high + 1)]
    for label, kind, values in series:
        points = [_point(i, value, len(places), low, high) for i, value in enumerate(values)]
        parts += [_segment(a, b, kind) for a, b in pairwise(points)]
        parts += [
            tag(
                "circle",
                tag("title", escape(f"{label}, {place}: {value:.2e}")),
                cx=f"{x:.2f}%",
                cy=y,
                r=3.5,
                class_=kind,
            )
            for place, value, (x, y) in zip(places, values, points, strict=True)
        ]
    ends = [(_LEFT, "start", places[0]), (_RIGHT, "end", places[-1])][: len(places)]
    for x, anchor, text in ends:
        where = {"x": f"{x}%", "y": _HEIGHT - 6, "text_anchor": anchor}
        parts.append(tag("text", escape(_short(text)), class_="axis", **where))
    plot = tag(
        "svg",
        tag("title", escape(name)) + "".join(parts),
        class_="plot",
        width="100%",
        height=_HEIGHT,
        role="img",
        aria_label=name,
    )
    return _legend([(label, kind) for label, kind, _ in series]) + plot


def bars(header: Row, rows: Sequence[tuple[Row, float | None, str]]) -> str:
    """Write a table whose last column is a bar.

    Args:
        header: Of all columns.
        rows: Texts, the length of the bar or None for none, and a class of the row's style.
    """
    longest = max((length for _, length, _ in rows if length), default=1.0) or 1.0
    kinds = ["text", *["number"] * (len(header) - 2), "bar"]
    names = zip(header, kinds, strict=True)
    head = tag("tr", "".join(tag("th", escape(name), class_=kind) for name, kind in names))
    lines = []
    for cells, length, kind in rows:
        first, *others = [escape(cell) for cell in cells]
        line = tag("th", first, scope="row")
        line += "".join(tag("td", cell, class_="number") for cell in others)
        bar = "" if length is None else _bar(length / longest)
        lines.append(tag("tr", line + tag("td", bar, class_="bar"), class_=kind or "plain"))
    body = tag("thead", head) + tag("tbody", "".join(lines))
    return scrolling(tag("table", body), "chart")


def _bar(share: float) -> str:
    rect = tag("rect", x=0, y=1, width=f"{max(100 * share, 0.5):.2f}%", height=12, rx=3)
    return tag("svg", rect, width="100%", height=14, aria_hidden="true")


def _grid(power: int, low: int, high: int) -> str:
    y = _height_of(power, low, high)
    line = tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid")
    return line + tag("text", f"1e{power}", x=0, y=y - 3, class_="axis")


def _point(place: int, value: float, count: int, low: int, high: int) -> tuple[float, float]:
    share = place / (count - 1) if count > 1 else 0.5
    return _LEFT + share * (_RIGHT - _LEFT), _height_of(
        math.log10(max(value, 10.0**low)), low, high
    )


def _height_of(power: float, low: int, high: int) -> float:
    return _TOP + (high - power) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _segment(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return tag("line", x1=f"{x1:.2f}%", y1=y1, x2=f"{x2:.2f}%", y2=y2, class_=kind)


def _short(name: str) -> str:
    """Keep the end of a long name, which tells more than its beginning."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = [tag("li", _dot(kind) + escape(label)) for label, kind in entries]
    return tag("ul", "".join(items), class_="legend")


def _dot(kind: str) -> str:
    dot = tag("circle", cx=6, cy=6, r=4.5, class_=kind)
    return tag("svg", dot, width=12, height=12, aria_hidden="true")
