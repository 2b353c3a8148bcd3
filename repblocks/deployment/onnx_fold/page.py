"""``report.html`` of a folded ONNX file, from the sections that each page is made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repblocks.deployment.onnx_fold.report import (
    KEPT_HEADER,
    PROOF_HEADER,
    UNPROVEN_HEADER,
    OnnxReport,
)
from repblocks.deployment.page import pictures
from repblocks.deployment.page.rendering import (
    FOLDED,
    cards,
    difference,
    drawn,
    layer_by_layer,
    page,
    regions,
    written,
)
from repblocks.deployment.page.svg import paragraph, section, table, tag
from repblocks.deployment.report import size_rows
from repblocks.folding.fold_report import FoldReport


def render_onnx_page(
    report: OnnxReport,
    fold: FoldReport,
    original: nn.Module,
    folded: nn.Module,
    inputs: Sequence[Tensor],
) -> str:
    """Write the page, which loads nothing; the same report gives the same text.

    Args:
        report: What was counted and compared.
        fold: The fold in it, with the names of modules.
        original: The graph as a torch module.
        folded: The same after the fold.
        inputs: To run both once.
    """
    before, after = (pictures.Recorded.of(one, *inputs) for one in (original, folded))
    costs = table(("", "original", "folded"), report.cost_rows())
    proofs = table(PROOF_HEADER, report.proof_rows())
    sections = [
        *drawn(before, after, (), fold),
        section(
            "proof",
            "Is it the same function?",
            paragraph(report.proof),
            proofs,
            *_unproven(report),
            *layer_by_layer(report.layers),
        ),
        section("folded", FOLDED, *regions(report.fold), *_kept(report)),
        section("nodes", "Nodes", costs),
        section("files", "Files", *written(size_rows(report.sizes), report.versions)),
    ]
    return page(report.source, paragraph(report.verdict()) + cards(_cards(report)), sections)


def _cards(report: OnnxReport) -> list[tuple[str, str, str]]:
    before, after = report.before, report.after
    worst = max(report.proofs, key=lambda one: one.folded.rms_rel / (one.folded.tolerance or 1.0))
    return [
        ("nodes", f"{after.num_nodes:,}", f"before: {before.num_nodes:,}"),
        ("multiply-adds", f"{after.macs:,}", f"before: {before.macs:,}"),
        ("values of initializers", f"{after.parameters:,}", f"before: {before.parameters:,}"),
        difference(worst.folded),
    ]


def _unproven(report: OnnxReport) -> list[str]:
    rows = report.unproven_rows()
    return [table(UNPROVEN_HEADER, rows, numbers_from=len(UNPROVEN_HEADER))] if rows else []


def _kept(report: OnnxReport) -> list[str]:
    rows = report.kept_rows()
    if not rows:
        return []
    return [
        tag("h3", f"Not looked into ({len(rows)})"),
        table(KEPT_HEADER, rows, numbers_from=len(KEPT_HEADER)),
    ]
