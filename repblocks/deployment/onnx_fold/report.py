"""What the fold of an ONNX file did and proved: as JSON, as Markdown and for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, ClassVar

import onnx
from rich.table import Table

from repblocks.deployment.layer_errors import LayerError
from repblocks.deployment.onnx_fold.proving import Proof, Unproven
from repblocks.deployment.onnx_fold.translating import Kept
from repblocks.deployment.report import LAYER_HEADER, layer_rows, markdown_table, size_rows
from repblocks.folding.fold_report import FoldReport


@dataclass(frozen=True)
class Size:
    """What a graph costs.

    Args:
        nodes: By kind, how many there are.
        parameters: Values of its initializers.
        macs: Multiply-adds for one input, as :class:`FoldReport` counts them.
    """

    nodes: Mapping[str, int]
    parameters: int
    macs: int

    @classmethod
    def of(cls, model: onnx.ModelProto, macs: int) -> Size:
        """Count the nodes and the initializers of a model."""
        kinds = Counter(node.op_type for node in model.graph.node)
        count = sum(prod(one.dims) for one in model.graph.initializer)
        return cls(dict(sorted(kinds.items())), count, macs)

    @property
    def num_nodes(self) -> int:
        """How many nodes there are."""
        return sum(self.nodes.values())


@dataclass(frozen=True)
class OnnxReport:
    """Everything that was counted and compared.

    Args:
        source: Name of the original file.
        runtime: What ran both files.
        before: The original graph.
        after: The folded graph.
        fold: What became one layer each, and what was left, with the reason.
        kept: Layers that were not looked into, with the reason.
        proofs: Both files on each input.
        versions: Of the packages that made it.
        sizes: Bytes of each written file.
        layers: How far each layer is from a float64 run of the original graph.
        unproven: Inputs that free sizes allow, on which nothing was compared.
    """

    source: str
    runtime: str
    before: Size
    after: Size
    fold: FoldReport
    kept: tuple[Kept, ...]
    proofs: tuple[Proof, ...]
    versions: Mapping[str, str]
    sizes: Mapping[str, int]
    layers: tuple[LayerError, ...]
    unproven: tuple[Unproven, ...] = ()

    #: What the differences of :meth:`proof_rows` are.
    proof: ClassVar[str] = (
        "Difference from a float64 run of the original graph, RMS relative to the part of the "
        "output that depends on the input:"
    )

    def to_dict(self) -> dict[str, Any]:
        """Give plain Python values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Give the report as a page of Markdown."""
        kept, layers = self.kept_rows(), layer_rows(self.layers)
        sections = [
            f"# {self.source}",
            markdown_table(("", "original", "folded"), self.cost_rows()),
            f"{self.verdict()} {self.proof}",
            markdown_table(PROOF_HEADER, self.proof_rows()),
            markdown_table(UNPROVEN_HEADER, self.unproven_rows()) if self.unproven else "",
            markdown_table(KEPT_HEADER, kept) if kept else "",
            self.fold.to_markdown(),
            f"{_LAYERS}\n\n{markdown_table(LAYER_HEADER, layers)}" if layers else "",
            markdown_table(("file", "size"), size_rows(self.sizes)),
            f"Written with {', '.join(f'{k} {v}' for k, v in self.versions.items())}.",
        ]
        return "\n\n".join(filter(None, sections)) + "\n"

    def to_table(self) -> Table:
        """Give the report as a table for the terminal."""
        table = Table("", "original", "folded", title=self.source)
        table.caption = self.verdict()
        for row in self.cost_rows():
            table.add_row(*row)
        table.add_section()
        for shapes, before, after, allowed in self.proof_rows():
            table.add_row(f"difference at {shapes}", before, f"{after} (allowed {allowed})")
        for shapes, reason in self.unproven_rows():
            table.add_row(f"not compared at {shapes}", reason, "")
        return table

    def verdict(self) -> str:
        """Say what ran the files."""
        return f"Both files were run in {self.runtime}."

    def kept_rows(self) -> list[tuple[str, ...]]:
        """Give each layer that was not looked into, under :data:`KEPT_HEADER`."""
        return [(one.name, one.op_type, one.reason) for one in self.kept]

    def cost_rows(self) -> list[tuple[str, ...]]:
        """Give each cost before and after."""
        before, after = self.before, self.after
        changed = sorted(
            kind
            for kind in before.nodes.keys() | after.nodes.keys()
            if before.nodes.get(kind) != after.nodes.get(kind)
        )
        return [
            ("nodes", f"{before.num_nodes:,}", f"{after.num_nodes:,}"),
            *((k, f"{before.nodes.get(k, 0):,}", f"{after.nodes.get(k, 0):,}") for k in changed),
            ("multiply-adds", f"{before.macs:,}", f"{after.macs:,}"),
            ("values of initializers", f"{before.parameters:,}", f"{after.parameters:,}"),
        ]

    def proof_rows(self) -> list[tuple[str, ...]]:
        """Give each input with the differences, under :data:`PROOF_HEADER`."""
        return [
            (
                _readable(one.shapes),
                f"{one.original.rms_rel:.2e}",
                f"{one.folded.rms_rel:.2e}",
                f"{one.folded.tolerance:.2e}",
            )
            for one in self.proofs
        ]

    def unproven_rows(self) -> list[tuple[str, ...]]:
        """Give each input that was not compared, under :data:`UNPROVEN_HEADER`."""
        return [(_readable(one.shapes), one.reason) for one in self.unproven]


def _readable(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


PROOF_HEADER = ("input", "original", "folded", "allowed")
UNPROVEN_HEADER = ("not compared at", "as the original does not run there")
KEPT_HEADER = ("kept as it is", "operator", "reason")
_LAYERS = "Error of each layer's output against float64, RMS relative to that output:"
