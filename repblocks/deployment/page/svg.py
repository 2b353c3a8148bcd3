"""Pieces of SVG and HTML as text; whatever is put in is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Row = Sequence[str]


def tag(name: str, content: str = "", **attributes: object) -> str:
    """Write an element; ``content`` is markup already, attributes are escaped.

    Args:
        name: Of the element.
        content: What stands in it.
        attributes: ``_`` at the end is dropped, and ``_`` within is ``-``.
    """
    parts = [name]
    for key, value in attributes.items():
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"')
    return f"<{' '.join(parts)}>{content}</{name}>"


def table(header: Row, rows: Iterable[Row], *, numbers_from: int = 1) -> str:
    """Write a table in a box in which it can be scrolled.

    Args:
        header: Of the columns.
        rows: Texts, which are escaped.
        numbers_from: The first column that is set to the right.
    """

    def cells(name: str, row: Row) -> str:
        kinds = ["number" if place >= numbers_from else "text" for place in range(len(row))]
        return "".join(
            tag(name, escape(cell), class_=kind) for cell, kind in zip(row, kinds, strict=True)
        )

    head = tag("thead", tag("tr", cells("th", header)))
    body = tag("tbody", "".join(tag("tr", cells("td", row)) for row in rows))
    return scrolling(tag("table", head + body), "table")


def scrolling(content: str, what: str) -> str:
    """Put markup into a box that scrolls by itself, with the keyboard too."""
    return tag("div", content, class_="scroll", tabindex=0, role="group", aria_label=what)


def section(name: str, title: str, *content: str) -> str:
    """Write a section with a heading, if anything is in it."""
    inner = "".join(content)
    heading = tag("h2", escape(title))
    return tag("section", heading + inner, id=name) if inner else ""


def paragraph(text: str) -> str:
    """Write a paragraph of escaped text."""
    return tag("p", escape(text))


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
