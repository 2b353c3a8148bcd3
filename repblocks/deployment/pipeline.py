"""From a training form and its fold to an artifact: verify, compare, write, run what is written."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.deployment.accuracy import compare_predictions
from repblocks.deployment.artifact import REPORT_FILE, staged, write_config, write_json
from repblocks.deployment.cost import count_cost, measure_latency
from repblocks.deployment.formats import AUTO, Export, Format, check_formats
from repblocks.deployment.latency import measure_forms
from repblocks.deployment.layer_errors import compare_layers
from repblocks.deployment.page import render_page
from repblocks.deployment.report import DeploymentReport
from repblocks.deployment.runtimes import all_contenders
from repblocks.errors import ConfigurationError, RepblocksError, VerificationError
from repblocks.folding.fold_report import FoldReport
from repblocks.folding.recording import evaluation_copy
from repblocks.folding.reference import Comparison, Reference
from repblocks.folding.switch import FoldedBlock
from repblocks.folding.verification import verify

_PACKAGES = ("repblocks", "torch", "timm", "safetensors", "onnx", "onnxscript", "onnxruntime")
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
            network that no name can rebuild), ``preprocessing`` and ``class_names``.
        example_input: ``(N, C, H, W)`` float32 images, normalised like the validation images.
        validation: Batches of images and class numbers, or None.
        formats: Names of the formats to write; ``auto`` writes the weights, and of the exact
            forms that this machine can write those that are the fastest in a setting.
        blocks: What became of each block, for the report.
        note: What the report says if there is no validation data.
        fold: What a fold of the whole network did, for the report.
        latency: Time each form in each runtime.

    Raises:
        VerificationError: if the folded network or a written form is another function.
        ConfigurationError: if ``output`` cannot be written, a format is unknown, or the example is
            not a float32 batch.
        RepblocksError: if a form cannot be written.
    """
    chosen = check_formats(formats)
    if example_input.dtype is not torch.float32 or example_input.numel() == 0:
        raise ConfigurationError(
            f"example_input must be a batch of float32 images, got {example_input.dtype} of shape "
            f"{tuple(example_input.shape)}."
        )
    with staged(Path(output)) as folder:
        before, after = evaluation_copy(training_form).cpu(), evaluation_copy(folded).cpu()
        verification = verify(before, after, example_input)
        agreement = None if validation is None else compare_predictions(before, after, validation)
        named = description.get("model") or {"name": type(folded).__name__}
        write_config(
            folder, after, {**description, "num_classes": _num_classes(after, example_input)}
        )
        forms = _write_formats(chosen, before, after, example_input, folder)
        measured = _measure(before, after, example_input)
        if latency or AUTO in formats:
            contenders = all_contenders(before, after, chosen, folder)
            found = measure_forms(
                contenders,
                Reference(before, example_input, torch.float32),
                accepted=[form.name for form in chosen if form.lossy],
            )
            measured["latency"] = asdict(found)
            if AUTO in formats:
                kept = {"safetensors", *formats, *found.fastest_forms()}
                forms = _keep(forms, kept, chosen, folder)
        macs = (None, None) if fold is None else (fold.macs_before, fold.macs_after)
        report = DeploymentReport(
            model=dict(named),
            training_form=count_cost(before, example_input[:1], macs[0]),
            deployed_form=count_cost(after, example_input[:1], macs[1]),
            blocks=tuple(blocks),
            verification=verification,
            forms=forms,
            agreement=agreement,
            note="" if agreement else note,
            sizes={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            versions=_versions(),
            measured=measured,
            fold=fold,
            layers=compare_layers(before, after, example_input[:1]),
        )
        write_json(folder / REPORT_FILE, report.to_dict())
        (folder / "report.md").write_text(report.to_markdown(), encoding="utf-8")
        page = render_page(report, before, after, example_input[:1])
        (folder / "report.html").write_text(page, encoding="utf-8")
    return report


def _write_formats(
    formats: Sequence[Format], before: nn.Module, after: nn.Module, images: Tensor, folder: Path
) -> dict[str, Comparison]:
    """Write each form, load it from its file and keep its worst comparison."""
    references = [Reference(before, _cycle(images, n), images.dtype) for n in _BATCH_SIZES]
    compared = {}
    for form in formats:
        try:
            form.write(Export(after, _cycle(images, _EXPORT_BATCH_SIZE), folder))
            run = form.read(folder, after)
        except Exception as error:  # exporters and runtimes raise classes of their own
            raise RepblocksError(f"{form.file} could not be written: {error}") from error
        found = [_compare(form, run, reference) for reference in references]
        compared[form.name] = max(found, key=lambda one: one.rms_rel / one.tolerance)
    return compared


def _keep(
    forms: Mapping[str, Comparison], kept: Collection[str], formats: Sequence[Format], folder: Path
) -> dict[str, Comparison]:
    """Remove the files of the other forms."""
    for form in formats:
        for name in form.files if form.name not in kept else ():
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {name: comparison for name, comparison in forms.items() if name in kept}


def _compare(form: Format, run: Any, reference: Reference) -> Comparison:
    """Run a written form on a reference's input.

    Raises:
        VerificationError: if it is another function.
    """
    with torch.inference_mode():
        found = reference.compare_output(run(*reference.inputs))
    if not found.passed:
        raise VerificationError(
            f"{form.file}, loaded and run on {len(reference.inputs[0])} images, differs from the "
            f"training form: RMS difference {found.rms_rel:.3g}, allowed {found.tolerance:.3g}.",
            difference=found.rms_rel,
            tolerance=found.tolerance,
        )
    return found


def _cycle(images: Tensor, count: int) -> Tensor:
    """Give this many images, from the start again if there are fewer."""
    return images[torch.arange(count) % len(images)]


def _num_classes(model: nn.Module, images: Tensor) -> int:
    with torch.inference_mode():
        return int(model(images[:1]).shape[-1])


def _measure(before: nn.Module, after: nn.Module, images: Tensor) -> dict[str, Any]:
    training, deployed = measure_latency([before, after], images)
    return {
        "batch_size": len(images),
        "threads": torch.get_num_threads(),
        "latency_ms": {"training_form": training, "deployed_form": deployed},
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
