"""From an ONNX file to a folder with its fold: read, translate, fold, write, run, compare."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import onnx
from torch import Tensor, nn

from repblocks.deployment.artifact import (
    REPORT_FILE,
    check_output,
    staged,
    write_json,
    write_text,
    writing,
)
from repblocks.deployment.formats import get_format
from repblocks.deployment.layer_errors import LayerError, compare_layers
from repblocks.deployment.load import CONFIG_FILE, FORMAT_VERSION
from repblocks.deployment.manifest import MANIFEST_FILE, describe_files, files_in
from repblocks.deployment.onnx_fold.emitting import emit
from repblocks.deployment.onnx_fold.inputs import Shapes, Spec, examples, specs_of
from repblocks.deployment.onnx_fold.modules import NODE
from repblocks.deployment.onnx_fold.page import render_onnx_page
from repblocks.deployment.onnx_fold.proving import prove_all
from repblocks.deployment.onnx_fold.reading import read_model
from repblocks.deployment.onnx_fold.report import OnnxReport, Size
from repblocks.deployment.onnx_fold.runtime import Runtime, open_file
from repblocks.deployment.onnx_fold.translating import Translation, translate
from repblocks.deployment.onnx_fold.writing import assemble, save
from repblocks.errors import ConfigurationError, RepblocksError
from repblocks.folding import fold as folding
from repblocks.folding.fold_report import FoldReport

FILE = "model.onnx"
_PACKAGES = ("repblocks", "torch", "onnx", "onnxruntime")
# The graph is folded at the first of these batches that it takes, and run at all that it takes.
_FOLDED_AT, _RUN_AT = (2, 1), (1, 2, 5)
# Not 0, which a comparison draws the values from that it tells these apart from.
_OTHER_SEED = 3


def fold_onnx(path: str | Path, output: str | Path, shapes: Shapes = None) -> OnnxReport:
    """Fold an ONNX file, prove that the result is the same function, and write it.

    The fold is that of :func:`repblocks.fold`: the graph becomes a torch module, and back. What is
    not folded stays as it was: nodes, names, free sizes, metadata, control flow, functions,
    quantized layers. An initializer that is an input as well counts as a constant.

    Args:
        path: The file, from any framework.
        output: A folder for ``model.onnx``, its reports and a manifest; it appears whole or not at
            all.
        shapes: Sizes of the only input, or by name of several, where they are free in the file.
            The first of them is a free batch if nothing is given.

    Raises:
        ConfigurationError: if the file cannot be read or run, sizes are missing or do not fit, or
            ``output`` is not possible.
        VerificationError: if the folded file, or the file as it was read, is another function.
    """
    check_output(Path(output), Path(path))
    source = _Source.read(Path(path), shapes)
    with staged(Path(output)) as folder:
        folded = folding.fold(source.translation.module, source.example, fixed_size=source.is_fixed)
        model = _written(source, folded, folder / FILE)
        names = source.translation.inputs
        after = open_file(folder / FILE, source.example, names)
        traced: FoldReport = folded.fold_report  # type: ignore[assignment] # fold attaches it
        fold = _named(traced, source.translation)
        proofs, unproven = prove_all(source.translation, source.runtime, after, _inputs(source))
        write_json(folder / CONFIG_FILE, _config(source.translation.model))
        original = source.translation.module
        report = OnnxReport(
            Path(path).name,
            source.runtime.name,
            Size.of(source.translation.model, fold.macs_before),
            Size.of(model, fold.macs_after),
            fold,
            tuple(source.translation.kept),
            proofs,
            {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            {name: (folder / name).stat().st_size for name in files_in(folder)},
            tuple(_layers(source, folded)),
            unproven,
        )
        _check_cost(report)
        write_json(folder / REPORT_FILE, report.to_dict())
        write_text(folder / "report.md", report.to_markdown())
        page = render_onnx_page(report, traced, original, folded, source.example)
        write_text(folder / "report.html", page)
        about = {"format_version": FORMAT_VERSION, "versions": dict(report.versions)}
        write_json(folder / MANIFEST_FILE, describe_files(folder, [get_format("onnx")], **about))
    return report


def explain_onnx(path: str | Path, shapes: Shapes = None) -> FoldReport:
    """Return what :func:`fold_onnx` would fold of a file, and why not more.

    Raises:
        ConfigurationError: as for :func:`fold_onnx`.
    """
    source = _Source.read(Path(path), shapes)
    module, example = source.translation.module, source.example
    found = folding.explain(module, example, fixed_size=source.is_fixed)
    return _named(found, source.translation)


@dataclass(frozen=True, eq=False)
class _Source:
    """A file that was read and translated.

    Args:
        specs: Its inputs.
        batch: Of the example, where that is free.
        example: Those that it is folded at.
        runtime: What runs it.
        translation: The graph as a torch module.
    """

    specs: tuple[Spec, ...]
    batch: int
    example: tuple[Tensor, ...]
    runtime: Runtime
    translation: Translation

    @classmethod
    def read(cls, path: Path, shapes: Shapes) -> _Source:
        model = read_model(path)
        specs = specs_of(model, shapes)
        batch, example, runtime = _opened(path, specs)
        return cls(specs, batch, example, runtime, translate(model, specs, example))

    @property
    def is_fixed(self) -> bool:
        """Whether the file fixes all sizes of its inputs, but for the batch."""
        return not any(axis for spec in self.specs for axis in spec.free)


def _opened(path: Path, specs: Sequence[Spec]) -> tuple[int, tuple[Tensor, ...], Runtime]:
    """Open the file with the first example that it takes."""
    names = [spec.name for spec in specs]
    for batch in _batches(specs, _FOLDED_AT):
        example = examples(specs, batch)
        try:
            return batch, example, open_file(path, example, names)
        except ConfigurationError as error:
            problem = error
    raise problem


def _batches(specs: Sequence[Spec], batches: Sequence[int]) -> Sequence[int]:
    """Return the batches to try: one if none is free."""
    return batches if any(0 in spec.free for spec in specs) else batches[:1]


def _written(source: _Source, folded: nn.Module, path: Path) -> onnx.ModelProto:
    model = assemble(source.translation, *emit(source.translation, folded))
    with writing(path.name):
        save(model, path)
        onnx.checker.check_model(path)
    return model


def _inputs(source: _Source) -> Iterator[tuple[Tensor, ...]]:
    """Give what the files are compared on: several batches, and other sizes where they are free."""
    specs = source.specs
    for batch in _batches(specs, _RUN_AT):
        yield examples(specs, batch, seed=batch)
    if not source.is_fixed:
        # An odd size shows what depends on the remainder, such as padding.
        for beyond in (0, 1):
            yield examples(specs, source.batch, _OTHER_SEED, beyond)


def _layers(source: _Source, folded: nn.Module) -> Iterator[LayerError]:
    """Compare what each node gives with what it gave, and name nodes and operators as ONNX does."""
    translation = source.translation
    for one in compare_layers(translation.module, folded, *source.example):
        place = getattr(translation.module.get_submodule(one.path), NODE, None)
        if place is not None:  # what is a part of a node is no value in the file
            kind = translation.model.graph.node[place].op_type
            yield replace(one, path=translation.name_of(one.path), kind=kind)


def _named(report: FoldReport, translation: Translation) -> FoldReport:
    """Name nodes as the file does, and what stands in the graph itself after the last of them."""
    name = translation.name_of
    regions = (
        replace(
            one,
            site=name(one.site or one.modules[-1]),
            modules=tuple(dict.fromkeys(map(name, one.modules))),
        )
        for one in report.folded
    )
    left = (replace(one, site=name(one.site)) for one in report.left)
    heuristic = tuple(map(name, report.heuristic))
    return replace(report, folded=tuple(regions), left=tuple(left), heuristic=heuristic)


def _check_cost(report: OnnxReport) -> None:
    before, after = report.before, report.after
    if after.num_nodes > before.num_nodes or after.macs > before.macs:
        raise RepblocksError(
            f"The fold of {report.source} would cost more: {after.num_nodes} nodes instead of "
            f"{before.num_nodes}, {after.macs} multiply-adds instead of {before.macs}."
        )


def _config(model: onnx.ModelProto) -> dict[str, object]:
    """Say that the folder is an artifact, whose network no name rebuilds."""
    architecture = model.graph.name or "onnx"
    return {"architecture": architecture, "format_version": FORMAT_VERSION, "rebuild": False}
