"""Quantized forms are other functions: they are judged by their accuracy, not by their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from repblocks.deployment.accuracy import compare_predictions
from repblocks.deployment.formats import Export, Format
from repblocks.deployment.probing import probes, relative, spread
from repblocks.deployment.quantization.friendliness import measure_friendliness
from repblocks.deployment.quantization.report import QuantizationReport, check_drop
from repblocks.deployment.written import written
from repblocks.errors import ConfigurationError

_REPORT_BATCH = 32
Validation = Iterable[tuple[Tensor, Tensor]]


def check_images(calibration: Sequence[Tensor], validation: Validation | None, note: str) -> None:
    """Check that there is something to quantize with, and to judge it with.

    Args:
        calibration: Batches of images.
        validation: Batches of images and class numbers, or None.
        note: Why there is none.

    Raises:
        ConfigurationError: if one is missing.
    """
    if not sum(map(len, calibration)):
        raise ConfigurationError(
            "A format that quantizes measures its ranges on images, and there are 0. Give the data "
            "of the run, or leave that format out."
        )
    if validation is None:
        raise ConfigurationError(
            f"A format that quantizes is judged by its accuracy, but {note}. Give the data of the "
            "run, or leave that format out."
        )


def write_quantized(
    formats: Sequence[Format], export: Export, validation: Validation
) -> QuantizationReport | None:
    """Write each quantized form, load it from its file and compare it on the validation images.

    Args:
        formats: All that were chosen; the exact ones are left out.
        export: What is written.
        validation: Run through for each form.

    Returns:
        None if no format quantizes.

    Raises:
        ConfigurationError: if there are no validation images.
        VerificationError: if a form loses too much.
        RepblocksError: if it cannot be written.
    """
    chosen = [form for form in formats if form.lossy]
    if not chosen:
        return None
    config = export.quantization
    images = torch.cat(list(export.calibration))[: config.report_images]
    some = torch.split(images, _REPORT_BATCH)
    layers = measure_friendliness(export.model, some, half_range=config.half_range)
    judged, differences = {}, {}
    first, second = probes(export.example.shape[1:])
    with torch.inference_mode():
        expected = export.model(first)
        scale = spread(expected, export.model(second))
    for form in chosen:
        run = written(form, export)
        found = None if run is None else compare_predictions(export.model, run, validation)
        if run is None or found is None:
            raise ConfigurationError(f"{form.file} cannot be judged on 0 validation images.")
        check_drop(form.file, found, config.largest_drop)
        judged[form.name] = found
        with torch.inference_mode():
            differences[form.name] = relative(run(first), expected, scale)
    count = sum(map(len, export.calibration))
    return QuantizationReport(config, count, layers, judged, differences)
