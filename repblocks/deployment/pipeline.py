"""From a training form and its fold to an artifact: verify, compare, write, run what is written."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.algebra import is_batch_norm
from repblocks.deployment.accuracy import compare_predictions
from repblocks.deployment.artifact import REPORT_FILE, staged, write_config, write_json, write_text
from repblocks.deployment.cost import count_cost, measure_latency
from repblocks.deployment.formats import (
    AUTO,
    Export,
    Format,
    check_formats,
    check_onnx,
    get_format,
    quantizing_formats,
)
from repblocks.deployment.formats._pixels import on_pixels
from repblocks.deployment.latency import Latency, measure_forms
from repblocks.deployment.layer_errors import compare_layers
from repblocks.deployment.load import FORMAT_VERSION
from repblocks.deployment.manifest import MANIFEST_FILE, describe_files, files_in
from repblocks.deployment.onnx_options import OnnxOptions
from repblocks.deployment.page import render_page
from repblocks.deployment.probing import SCORES
from repblocks.deployment.provenance import code_state, versions
from repblocks.deployment.quantization import QuantizationConfig
from repblocks.deployment.quantized_forms import (
    Quantized,
    check_images,
    try_quantized,
    usable,
    write_quantized,
)
from repblocks.deployment.report import DeploymentReport, Rows
from repblocks.deployment.runtimes import all_contenders
from repblocks.deployment.written import write_exact
from repblocks.errors import ConfigurationError
from repblocks.folding.fold_report import FoldReport
from repblocks.folding.recording import evaluation_copy
from repblocks.folding.reference import Reference
from repblocks.folding.switch import FoldedBlock
from repblocks.folding.verification import verify

# Written forms are run at these batch sizes; graphs are exported with another one.
_BATCH_SIZES, _EXPORT_BATCH_SIZE = (1, 2, 5), 3


def deploy(
    training_form: nn.Module,
    folded: nn.Module,
    *,
    output: str | Path,
    description: Mapping[str, Any],
    example_input: Tensor,
    validation: Iterable[tuple[Tensor, Tensor]] | None = None,
    formats: Sequence[str] = ("safetensors", "onnx", "pt2"),
    blocks: Sequence[FoldedBlock] = (),
    note: str = "no validation data was given",
    fold: FoldReport | None = None,
    onnx: OnnxOptions | None = None,
    calibration: Sequence[Tensor] = (),
    quantization: QuantizationConfig | None = None,
    latency: bool = False,
) -> DeploymentReport:
    """Prove that a folded network is its training form, and write it in each format.

    Each written form is loaded from its file, run at several batch sizes and compared with a
    float64 run of the training form before the folder appears. Everything runs on the CPU, on
    copies: both networks stay as they are.

    Args:
        training_form: The network with its branches, in any mode.
        folded: The same network after folding.
        output: The artifact's folder; it appears whole or not at all.
        description: ``model`` (``{"name", "kwargs"}`` in timm's registry; leave it out for a
            network that no name can rebuild), ``preprocessing`` and ``class_names``; ``run`` and
            ``deployment``, plain values about where the network is from and what is done with it,
            go into the manifest.
        example_input: ``(N, C, H, W)`` float32 images, normalised like the validation images.
        validation: Batches of images and class numbers, or None.
        formats: Names of the formats to write; ``auto`` writes the weights, and of the exact
            forms that this machine can write those that are the fastest in a setting. Quantized
            ones are among them with ``quantization.auto``; otherwise they are timed alone.
        blocks: What became of each block, for the report.
        note: What the report says if there is no validation data.
        fold: What a fold of the whole network did, for the report.
        onnx: What ``model.onnx`` is to take; by default normalised images of the network's size.
        calibration: Typical batches of images, for formats that quantize, also where forms are
            timed.
        quantization: How those formats do it; what they write is judged by its accuracy on
            ``validation``, which is run through again for each of them.
        latency: Time each form in each runtime.

    Raises:
        VerificationError: if the folded network or a written form is another function, or a
            quantized form loses more accuracy than it may.
        ConfigurationError: if ``output`` cannot be written, a format is unknown, the example is
            not a float32 batch, there are not as many class names as scores, or a format that
            quantizes has no images to be made or judged with.
        RepblocksError: if a form cannot be written.
    """
    chosen = check_formats(formats)
    options = onnx or OnnxOptions()
    check_onnx(chosen, options)
    if example_input.dtype is not torch.float32 or example_input.numel() == 0:
        raise ConfigurationError(
            f"example_input must be a batch of float32 images, got {example_input.dtype} of shape "
            f"{tuple(example_input.shape)}."
        )
    calibration = usable(calibration, example_input)
    if any(form.lossy for form in chosen):
        check_images(calibration, validation, note)
    with staged(Path(output)) as folder:
        before, after = evaluation_copy(training_form).cpu(), evaluation_copy(folded).cpu()
        description = {**description, "num_classes": _num_classes(after, example_input)}
        _check_labels(description)
        verification = verify(before, after, example_input)
        agreement = None if validation is None else compare_predictions(before, after, validation)
        named = description.get("model") or {"name": type(folded).__name__}
        write_config(folder, after, description)
        export = Export(
            after,
            _cycle(example_input, _EXPORT_BATCH_SIZE),
            folder,
            calibration,
            onnx=options,
            quantization=quantization or QuantizationConfig(),
        )
        batches = [_cycle(example_input, n) for n in _BATCH_SIZES]
        forms = write_exact(chosen, before, export, batches)
        quantized = write_quantized(chosen, export, validation or ())
        measured = _measure(before, after, example_input)
        if latency or AUTO in formats:
            may_choose = AUTO in formats and export.quantization.auto
            quantized = try_quantized(quantized, export, validation, note, choose=may_choose)
            names = {form.name for form in chosen}
            more = [form for form in map(get_format, quantized.accepted) if form.name not in names]
            found = _time(before, export, [*chosen, *more], quantized)
            measured["latency"] = asdict(found)
            if AUTO in formats:
                wanted = {"onnx"} if options != OnnxOptions() else set()
                names = {"safetensors", *formats, *wanted, *found.fastest_forms()}
            chosen = _keep([*chosen, *more], names, folder)
            forms = {form.name: forms[form.name] for form in chosen if form.name in forms}
        scores = quantized.scores
        if kept := {form.name: scores[form.name] for form in chosen if form.name in scores}:
            measured[SCORES] = kept
        macs = (None, None) if fold is None else (fold.macs_before, fold.macs_after)
        report = DeploymentReport(
            model=dict(named),
            training_form=count_cost(before, example_input[:1], macs[0]),
            deployed_form=count_cost(after, example_input[:1], macs[1]),
            blocks=tuple(blocks),
            left=_left(after, blocks),
            verification=verification,
            forms=forms,
            agreement=agreement,
            note="" if agreement else note,
            sizes={name: (folder / name).stat().st_size for name in files_in(folder)},
            versions=versions(chosen),
            measured=measured,
            fold=fold,
            not_run=tuple(form.name for form in chosen if form.check),
            quantization=quantized.report,
            layers=compare_layers(before, after, example_input[:1]),
        )
        write_json(folder / REPORT_FILE, report.to_dict())
        write_text(folder / "report.md", report.to_markdown())
        page = render_page(report, before, after, example_input[:1])
        write_text(folder / "report.html", page)
        asked = description.get("deployment") or {
            "formats": list(formats),
            "onnx_export": asdict(options),
            "quantization": asdict(export.quantization),
            "latency": latency,
        }
        manifest = describe_files(
            folder,
            chosen,
            format_version=FORMAT_VERSION,
            versions=dict(report.versions),
            git=code_state(),
            run=description.get("run"),
            deployment=asked,
        )
        write_json(folder / MANIFEST_FILE, manifest)
    return report


def _time(
    before: nn.Module, export: Export, formats: Sequence[Format], quantized: Quantized
) -> Latency:
    """Time each form in each runtime; those that quantize count as verified by their accuracy."""
    images = on_pixels(export.example, export.folder) if export.onnx.pixels else export.example
    found = measure_forms(
        all_contenders(before, export.model, formats, export.folder),
        Reference(before, images, torch.float32),
        quantized=quantized.accepted,
    )
    return replace(found, notes=(*found.notes, *quantized.notes))


def _keep(formats: Sequence[Format], kept: Collection[str], folder: Path) -> list[Format]:
    """Remove the files of the other forms, and of those that could not be written."""
    for form in (*formats, *quantizing_formats()):
        for name in form.files if form.name not in kept else ():
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return [form for form in formats if form.name in kept]


def _cycle(images: Tensor, count: int) -> Tensor:
    """Give this many images, from the start again if there are fewer."""
    return images[torch.arange(count) % len(images)]


def _num_classes(model: nn.Module, images: Tensor) -> int:
    with torch.inference_mode():
        return int(model(images[:1]).shape[-1])


def _check_labels(description: Mapping[str, Any]) -> None:
    names, expected = list(description.get("class_names") or ()), description["num_classes"]
    if names and len(names) != expected:
        raise ConfigurationError(
            f"class_names must hold one name for each of the {expected} scores of the network, got "
            f"{len(names)}. Take images of the classes that it was trained on."
        )


def _measure(before: nn.Module, after: nn.Module, images: Tensor) -> dict[str, Any]:
    training, deployed = measure_latency([before, after], images)
    return {
        "batch_size": len(images),
        "threads": torch.get_num_threads(),
        "latency_ms": {"training_form": training, "deployed_form": deployed},
    }


def _left(after: nn.Module, blocks: Sequence[FoldedBlock]) -> Rows:
    """Tell the layers with weights that no block holds, where blocks were folded."""
    if not blocks:
        return []
    inside = tuple(f"{block.path}.".lstrip(".") for block in blocks)
    left: Rows = []
    for path, layer in after.named_modules():
        has_weights = any(True for _ in layer.parameters(recurse=False))
        if has_weights and not f"{path}.".startswith(inside):
            why = "a norm that no block holds" if is_batch_norm(layer) else "it has no branches"
            left.append((path or "(root)", type(layer).__name__, why))
    return left
