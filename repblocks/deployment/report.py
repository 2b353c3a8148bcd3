"""What a deployment did and proved: as JSON, as Markdown and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from rich.table import Table

from repblocks.deployment.accuracy import Agreement
from repblocks.deployment.cost import Cost
from repblocks.deployment.layer_errors import LayerError
from repblocks.deployment.quantization.report import (
    FORM_HEADER,
    QUANTIZED_HEADER,
    QuantizationReport,
)
from repblocks.folding.fold_report import FoldReport, markdown_row
from repblocks.folding.reference import Comparison
from repblocks.folding.switch import FoldedBlock
from repblocks.folding.verification import Verification

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class DeploymentReport:
    """Everything that was counted, compared and measured.

    Args:
        model: Name and arguments of the network in timm's registry, or its class alone.
        training_form: Cost with branches.
        deployed_form: Cost after folding.
        blocks: What became of each block.
        left: Path and kind of each layer with weights that is in no block, and why it stays.
        verification: The folded network against a float64 run of the training form.
        forms: The same for each written form, loaded from its file.
        agreement: Both forms on the validation images, or None.
        note: Why there is no ``agreement``; empty if there is one.
        sizes: Bytes of each written file.
        versions: Of the packages that wrote the artifact.
        measured: Latencies in milliseconds, and what quantized forms give for seeded images; the
            only part that another run does not repeat.
        fold: What became of a network that was folded as a whole, and what was left.
        not_run: Forms that nothing on this machine runs, so that only their contents were checked.
        quantization: What became of the quantized forms, or None if there are none.
        layers: How far each layer is from a float64 run of the training form.
    """

    model: Mapping[str, Any]
    training_form: Cost
    deployed_form: Cost
    blocks: tuple[FoldedBlock, ...]
    left: Rows
    verification: Verification
    forms: Mapping[str, Comparison]
    agreement: Agreement | None
    note: str
    sizes: Mapping[str, int]
    versions: Mapping[str, str]
    measured: Mapping[str, Any]
    fold: FoldReport | None = None
    not_run: tuple[str, ...] = ()
    quantization: QuantizationReport | None = None
    layers: tuple[LayerError, ...] = ()

    #: What the differences of :meth:`proof_rows` are.
    proof: ClassVar[str] = (
        "Difference from a float64 run of the training form, RMS relative to the part of the "
        "output that depends on the input:"
    )

    def to_dict(self) -> dict[str, Any]:
        """Give plain Python values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Give the report as a page of Markdown."""
        versions = ", ".join(f"{package} {number}" for package, number in self.versions.items())
        sections = [
            f"# {self.title}",
            markdown_table(("", "training form", "deployed form"), self._cost_rows()),
            self.verdict(),
            self.proof,
            markdown_table(("form", "difference", "allowed"), self.proof_rows()),
            self.unproven(),
            self._layer_section(),
            self._latency_section(),
            *self._quantized_sections(),
            markdown_table(("file", "size"), self.file_rows()),
            markdown_table(BLOCK_HEADER, self.block_rows()) if self.blocks else "",
            markdown_table(LEFT_HEADER, self.left) if self.left else "",
            self.fold.to_markdown() if self.fold else "",
            f"Written with {versions}.",
        ]
        return "\n\n".join(filter(None, sections)) + "\n"

    def to_table(self) -> Table:
        """Give the report as a table for the terminal."""
        table = Table("", "training form", "deployed form", title=self.title)
        notes = self.measured.get("latency", {}).get("notes", ())
        table.caption = "\n".join(filter(None, (self.verdict(), self.unproven(), *notes)))
        for row in self._cost_rows():
            table.add_row(*row)
        table.add_section()
        for form, difference, allowed in self.proof_rows():
            table.add_row(f"{form}: difference", "", f"{difference} (allowed {allowed})")
        if self.quantization:
            table.add_section()
            for name, before, after, _ in self.quantization.form_rows():
                table.add_row(f"{name}: top-1", f"{before} in float32", after)
        table.add_section()
        for threads, batch, form, runtime, taken, _, mark in self.latency_rows():
            if mark == "fastest":
                setting = f"fastest, {threads} threads, batch {batch}"
                table.add_row(setting, "", f"{taken}: {form}, {runtime}")
        table.add_section()
        for file, size in self.file_rows():
            table.add_row(file, "", size)
        return table

    @property
    def title(self) -> str:
        """The name, and after it that of a network which is an argument of it."""
        names = (self.model["name"], self.model.get("kwargs", {}).get("name"))
        return " ".join(filter(None, names))

    def _cost_rows(self) -> Rows:
        before, after, latency = self.training_form, self.deployed_form, self.measured["latency_ms"]
        rows: Rows = [
            ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
            ("multiply-adds", f"{before.macs:,}", f"{after.macs:,}"),
            ("convolutions", str(before.convolutions), str(after.convolutions)),
            (
                f"latency, batch {self.measured['batch_size']}",
                f"{latency['training_form']:.2f} ms",
                f"{latency['deployed_form']:.2f} ms",
            ),
        ]
        if self.agreement is not None:
            found = self.agreement
            rows += [
                ("top-1", f"{found.training_top1:.2%}", f"{found.deployed_top1:.2%}"),
                ("top-5", f"{found.training_top5:.2%}", f"{found.deployed_top5:.2%}"),
            ]
        return rows

    def latency_rows(self) -> Rows:
        """Give what was timed in each runtime; the fastest of a setting is marked."""
        return [
            (
                f"{t['threads']}",
                f"{t['batch']}",
                t["form"],
                t["runtime"],
                f"{t['median_ms']:.2f} ms",
                f"{t['p90_ms']:.2f} ms",
                mark_of(t),
            )
            for t in self.measured.get("latency", {}).get("timings", ())
        ]

    def block_rows(self) -> Rows:
        """Give each block with its parameters in both forms."""
        return [
            (b.path, b.block, f"{b.parameters_before:,}", f"{b.parameters_after:,}")
            for b in self.blocks
        ]

    def proof_rows(self) -> Rows:
        """Give each form with its difference and what is allowed."""
        proofs = {"folded": self.verification, **self.forms}
        return [(k, f"{v.rms_rel:.2e}", f"{v.tolerance:.2e}") for k, v in proofs.items()]

    def unproven(self) -> str:
        """Say which forms were not run."""
        forms = ", ".join(self.not_run)
        return f"Not run, as nothing here runs it, but checked part by part: {forms}." * bool(forms)

    def _quantized_sections(self) -> list[str]:
        if self.quantization is None:
            return []
        return [
            markdown_table(FORM_HEADER, self.quantization.form_rows()),
            markdown_table(QUANTIZED_HEADER, self.quantization.layer_rows()),
        ]

    def _layer_section(self) -> str:
        words = "Error of each layer's output against float64, RMS relative to that output:"
        rows = layer_rows(self.layers)
        return f"{words}\n\n{markdown_table(LAYER_HEADER, rows)}" if rows else ""

    def _latency_section(self) -> str:
        rows = self.latency_rows()
        notes = self.measured.get("latency", {}).get("notes", ())
        return "\n\n".join([markdown_table(LATENCY_HEADER, rows), *notes]) if rows else ""

    def file_rows(self) -> Rows:
        """Give each file with its size."""
        return size_rows(self.sizes)

    def verdict(self) -> str:
        """Say how often the predicted class differs."""
        if self.agreement is None:
            return f"No validation images were compared: {self.note}."
        return (
            f"The predicted class differs for {self.agreement.num_differing} of "
            f"{self.agreement.num_images} validation images."
        )


#: The headers of :meth:`DeploymentReport.block_rows` and of what is left.
BLOCK_HEADER = ("block", "kind", "parameters", "after folding")
LEFT_HEADER = ("left", "kind", "because")
#: The header of :meth:`DeploymentReport.latency_rows`.
LATENCY_HEADER = ("threads", "batch", "form", "runtime", "median", "p90", "")
#: The header of :func:`layer_rows`.
LAYER_HEADER = ("layer", "kind", "deployed form", "training form")


def layer_rows(layers: Iterable[LayerError]) -> Rows:
    """Give each layer with its error in both forms."""
    return [(one.path, one.kind, f"{one.rms_rel:.2e}", f"{one.own_rms_rel:.2e}") for one in layers]


def size_rows(sizes: Mapping[str, int]) -> Rows:
    """Give each file with its size."""
    return [(file, _readable(size)) for file, size in sizes.items()]


def mark_of(timing: Mapping[str, Any]) -> str:
    """Say what a timing is that is not just one more of the same function."""
    if timing["fastest"]:
        return "fastest"
    if timing["verified"]:
        return ""
    return "8 bits, not chosen" if timing["quantized"] else "another function"


def markdown_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Give a Markdown table."""
    rule = ("---",) * len(header)
    return "\n".join(map(markdown_row, (header, rule, *rows)))


def _readable(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
