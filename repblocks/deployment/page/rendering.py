"""Put the page together from a report and the two forms of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template
from typing import Any

from torch import Tensor, nn

from repblocks.deployment.layer_errors import LayerError
from repblocks.deployment.page import pictures
from repblocks.deployment.page.charts import bars, log_plot
from repblocks.deployment.page.svg import paragraph, section, table, tag
from repblocks.deployment.quantization.report import (
    FORM_HEADER,
    QUANTIZED_HEADER,
    QuantizationReport,
)
from repblocks.deployment.report import (
    BLOCK_HEADER,
    LAYER_HEADER,
    LEFT_HEADER,
    DeploymentReport,
    layer_rows,
    mark_of,
)
from repblocks.folding.fold_report import FoldReport
from repblocks.folding.reference import Comparison
from repblocks.folding.switch import FoldedBlock

#: How bars are drawn, by their mark; others have it in their label.
_KINDS = {"fastest": "best", "another function": "wrong"}


def render_page(
    report: DeploymentReport, training_form: nn.Module, folded: nn.Module, images: Tensor
) -> str:
    """Write the page, which loads nothing: no script, no font, no picture from elsewhere.

    The same report gives the same text; what was measured stands in the section ``latency`` alone.

    Args:
        report: What was counted, compared and measured.
        training_form: In evaluation mode.
        folded: In evaluation mode.
        images: ``(N, C, H, W)``, to run both once.
    """
    before = pictures.Recorded.of(training_form, images)
    after = pictures.Recorded.of(folded, images)
    sections = [
        *drawn(before, after, report.blocks, report.fold),
        section("proof", "Is it the same function?", *_proof(report)),
        section("folded", FOLDED, *_folded(report)),
        section("quantization", "In 8 bits", *_quantized(report.quantization)),
        section("latency", "Latency", *_latency(report.measured)),
        section("files", "Files", *written(report.file_rows(), report.versions)),
    ]
    return page(report.title, paragraph(report.verdict()) + cards(_cards(report)), sections)


#: The heading of what was folded.
FOLDED = "What was folded, and what was left"


def page(title: str, summary: str, sections: Sequence[str]) -> str:
    """Put sections, of which some may be empty, and the markup above them into the page."""
    template = files("repblocks.deployment.page").joinpath("page.html").read_text(encoding="utf-8")
    body = "\n".join(filter(None, sections))
    return Template(template).substitute(title=escape(title), summary=summary, body=body)


def drawn(
    before: pictures.Recorded,
    after: pictures.Recorded,
    blocks: Sequence[FoldedBlock],
    fold: FoldReport | None,
) -> list[str]:
    """Write the sections of the pictures."""
    networks = pictures.networks(before, after)
    opened = pictures.opened(before, after, blocks, fold)
    return [
        section("network", "The network before and after", pictures.legend(), networks),
        section("block", "One block, opened", opened),
    ]


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """Write numbers, each with its name and what it was."""
    items = [
        tag("div", tag("dt", name) + tag("dd", value + tag("small", beside)))
        for name, value, beside in entries
    ]
    return tag("dl", "".join(items), class_="cards")


def difference(found: Comparison) -> tuple[str, str, str]:
    """Give the number of a comparison, and what it may be."""
    return "difference", f"{found.rms_rel:.1e}", f"allowed: {found.tolerance:.1e}"


def _cards(report: DeploymentReport) -> list[tuple[str, str, str]]:
    before, after, found = report.training_form, report.deployed_form, report.agreement
    entries = [
        ("parameters", f"{after.parameters:,}", f"before: {before.parameters:,}"),
        ("multiply-adds", f"{after.macs:,}", f"before: {before.macs:,}"),
        ("convolutions", f"{after.convolutions}", f"before: {before.convolutions}"),
        difference(report.verification),
    ]
    if found is not None:
        entries[:0] = [
            ("top-1", f"{found.deployed_top1:.2%}", f"before: {found.training_top1:.2%}"),
            ("top-5", f"{found.deployed_top5:.2%}", f"before: {found.training_top5:.2%}"),
        ]
    return entries


def _proof(report: DeploymentReport) -> list[str]:
    parts = [
        paragraph(report.proof),
        table(("form", "difference", "allowed"), report.proof_rows()),
        paragraph(report.unproven()) if report.not_run else "",
    ]
    return [*parts, *layer_by_layer(report.layers)]


def layer_by_layer(layers: Sequence[LayerError]) -> list[str]:
    """Write the plot of the errors of layers, and their table."""
    if not layers:
        return []
    words = (
        "RMS difference of each layer's output from a float64 run of the training form, relative "
        "to that output, from the first layer to the last. Both forms round as they run; the "
        "deployed form is right where its line is near that of the training form."
    )
    plot = log_plot(
        "Relative error of each layer against float64",
        [layer.path for layer in layers],
        [
            ("training form", "own", [layer.own_rms_rel for layer in layers]),
            ("deployed form", "deployed", [layer.rms_rel for layer in layers]),
        ],
    )
    numbers = table(LAYER_HEADER, layer_rows(layers), numbers_from=2)
    summary = tag("summary", f"{len(layers)} layers in numbers")
    details = tag("details", summary + numbers)
    return [tag("h3", "Layer by layer"), paragraph(words), plot, details]


def _folded(report: DeploymentReport) -> list[str]:
    parts = []
    if report.blocks:
        parts.append(table(BLOCK_HEADER, report.block_rows(), numbers_from=2))
    if report.left:
        parts.append(table(LEFT_HEADER, report.left, numbers_from=len(LEFT_HEADER)))
    return [*parts, *regions(report.fold)]


def regions(fold: FoldReport | None) -> list[str]:
    """Write the tables of what a fold of the whole network did."""
    parts = []
    for title, header, rows in fold.tables() if fold else ():
        parts.append(tag("h3", f"{title} ({len(rows)})"))
        parts.append(
            table(header, rows, numbers_from=len(header)) if rows else paragraph("Nothing.")
        )
    return parts


def _quantized(found: QuantizationReport | None) -> list[str]:
    if found is None:
        return []
    shares = [layer.error_share for layer in found.layers_by_error()]
    words = (
        "What each layer alone loses when its weights and its input are rounded, before anything "
        "is done about it, as a share of what all of them lose:"
    )
    layers = zip(found.layer_rows(), shares, strict=True)
    return [
        table(FORM_HEADER, found.form_rows()),
        paragraph(words),
        bars((*QUANTIZED_HEADER, ""), [(row, share, "") for row, share in layers]),
    ]


def _latency(measured: Mapping[str, Any]) -> list[str]:
    found = measured.get("latency")
    if found is None:
        taken = measured["latency_ms"]
        return [
            _bars(
                measured["threads"],
                measured["batch_size"],
                [(name.replace("_", " "), value, None, "") for name, value in taken.items()],
            )
        ]
    settings = groupby(found["timings"], key=lambda t: (t["threads"], t["batch"]))
    charts = [
        _bars(
            *setting,
            [(_label(t), t["median_ms"], t["p90_ms"], _KINDS.get(mark_of(t), "")) for t in timings],
        )
        for setting, timings in settings
    ]
    words = (
        "The fastest form of each setting that is the same function is green; one in 8 bits only "
        "if its accuracy was accepted."
    )
    return [paragraph(words), *charts, *map(paragraph, found["notes"])]


def _label(timing: Mapping[str, Any]) -> str:
    mark = mark_of(timing)
    shown = "" if mark in ("", *_KINDS) else f" ({mark})"
    return f"{timing['form']}, {timing['runtime']}{shown}"


def _bars(threads: int, batch: int, timings: Sequence[tuple[str, float, float | None, str]]) -> str:
    rows = [
        (
            (name, f"{value:.2f} ms", "" if p90 is None else f"{p90:.2f} ms"),
            value,
            kind,
        )
        for name, value, p90, kind in timings
    ]
    count = "1 thread" if threads == 1 else f"{threads} threads"
    images = "1 image" if batch == 1 else f"{batch} images"
    return tag("h3", f"{count}, {images}") + bars(("form", "median", "p90", ""), rows)


def written(files: Iterable[Sequence[str]], versions: Mapping[str, str]) -> list[str]:
    """Write the table of the files, and which packages wrote them."""
    packages = ", ".join(f"{package} {number}" for package, number in versions.items())
    return [table(("file", "size"), files), paragraph(f"Written with {packages}.")]
