"""What a fold did, what it cost, and what it left alone, with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.console import Group
from rich.table import Table

from repblocks.folding.verification import Verification


class Reason(StrEnum):
    """Why something was left as it is; there are no other reasons."""

    NONLINEARITY = "nonlinearity between"
    PADDING = "zero padding between"
    OTHER_READER = "another reader needs the unfolded value"
    STATISTICS = "training mode or no statistics"
    OPAQUE = "opaque"
    COST = "it would cost more"
    UNUSED = "never called"


@dataclass(frozen=True)
class FoldedRegion:
    """A region that became one layer.

    Args:
        site: The module whose place the layer took, or whose graph it stands in.
        rule: The operations that were folded, in words.
        modules: The modules they belong to.
        macs_before: Multiply-adds for one input of the example's size.
        macs_after: The same of the layer.
        parameters_before: Parameters of the modules.
        parameters_after: Parameters of the layer.
    """

    site: str
    rule: str
    modules: tuple[str, ...]
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class LeftAlone:
    """Something that might have been folded.

    Args:
        site: Where it stands.
        what: What it is.
        reason: Why it stayed.
        detail: More words on it; may be empty.
    """

    site: str
    what: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class FoldReport:
    """The whole fold.

    Multiply-adds are those of convolutions and linear layers, and one for each value that a
    BatchNorm or a scale of its own gives, for one input; without an example they are those of one
    position. What is called several times counts as its first call.

    Args:
        folded: What became one layer each.
        left: What stayed.
        macs_before: Of the model.
        macs_after: Of the folded model.
        parameters_before: Of the model.
        parameters_after: Of the folded model.
        heuristic: Sites at which too many shared values stood to try all choices.
        verification: How far the folded model is from a float64 run of the original; None if that
            was not measured.
    """

    folded: tuple[FoldedRegion, ...]
    left: tuple[LeftAlone, ...]
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    heuristic: tuple[str, ...] = ()
    verification: Verification | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the report as tables of Markdown."""
        lines = [f"**{line}**\n" for line in self._summary()]
        for title, header, rows in self.tables():
            lines += [f"## {title}\n", markdown_row(header), markdown_row("---" for _ in header)]
            lines += [*map(markdown_row, rows), ""]
        return "\n".join(lines)

    def __rich__(self) -> Group:
        """Show the report in a terminal."""
        tables = []
        for title, header, rows in self.tables():
            table = Table(*header, title=title)
            for row in rows:
                table.add_row(*row)
            tables.append(table)
        return Group(*tables, *self._summary())

    def _summary(self) -> list[str]:
        proof = "no"
        if self.verification is not None:
            found = self.verification
            proof = f"yes, {found.dtype}, RMS difference {found.rms_rel:.2g} of the signal"
            proof += f" ({found.note})" if found.note else ""
        return [
            f"multiply-adds: {self.macs_before:,} before, {self.macs_after:,} after",
            f"parameters: {self.parameters_before:,} before, {self.parameters_after:,} after",
            f"verified: {proof}",
            *(f"planned by a heuristic at {site}" for site in self.heuristic),
        ]

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """Give the title, the header and the rows of each table."""
        folded: list[tuple[str, ...]] = [
            (
                r.site,
                r.rule,
                f"{r.macs_before:,} → {r.macs_after:,}",
                f"{r.parameters_before:,} → {r.parameters_after:,}",
            )
            for r in self.folded
        ]
        left: list[tuple[str, ...]] = [
            (one.site, one.what, str(one.reason), one.detail) for one in self.left
        ]
        return [
            ("Folded", ("site", "operations", "multiply-adds", "parameters"), folded),
            ("Left as it is", ("site", "what", "reason", "detail"), left),
        ]


def markdown_row(cells: Iterable[str]) -> str:
    """Return a row of a table; names may hold any characters."""
    written = (re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(written)} |"
