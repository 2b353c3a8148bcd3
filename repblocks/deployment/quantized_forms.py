"""Quantized forms are other functions: they are judged by their accuracy, not by their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from repblocks.data import ImageDataModule
from repblocks.deployment.accuracy import Agreement, compare_predictions
from repblocks.deployment.formats import (
    AUTO,
    Export,
    Format,
    check_formats,
    quantizing_formats,
)
from repblocks.deployment.probing import excerpt, pictures, plain
from repblocks.deployment.quantization import QuantizationConfig
from repblocks.deployment.quantization.calibration import calibration_batches
from repblocks.deployment.quantization.friendliness import (
    LayerFriendliness,
    measure_friendliness,
)
from repblocks.deployment.quantization.report import QuantizationReport, check_drop
from repblocks.deployment.written import written
from repblocks.errors import ConfigurationError, RepblocksError, VerificationError

_REPORT_BATCH = 32
Validation = Iterable[tuple[Tensor, Tensor]]
Scores = list[list[float]]


def calibration_for(
    data: ImageDataModule | None,
    config: QuantizationConfig,
    formats: Sequence[str],
    *,
    latency: bool,
) -> Sequence[Tensor]:
    """Give the images that ranges are measured on; none if no form needs them.

    Args:
        data: Where they come from.
        config: How many, and which.
        formats: Names of those that are written.
        latency: Whether forms are timed besides, where those in 8 bits need images too.

    Raises:
        ConfigurationError: if there are none, and a form was asked for by name.
    """
    quantizes = any(form.lossy for form in check_formats(formats))
    if not (quantizes or latency or AUTO in formats):
        return ()
    try:
        return calibration_batches(data, config)
    except ConfigurationError:
        if quantizes:
            raise
        return ()  # the report says that no form in 8 bits was timed


def usable(calibration: Iterable[Tensor], example: Tensor) -> list[Tensor]:
    """Leave batches without images out, and check the others.

    Args:
        calibration: Batches of any sizes.
        example: A batch as the network takes it.

    Raises:
        ConfigurationError: if one is not like it, or holds values that are not finite.
    """
    batches = [batch for batch in calibration if len(batch)]
    for number, batch in enumerate(batches):
        found, wanted = ((x.dtype, tuple(x.shape[1:])) for x in (batch, example))
        if found != wanted:
            raise ConfigurationError(
                f"Calibration batch {number} holds images of {found[0]} and shape {found[1]}, and "
                f"the network takes {wanted[0]} and shape {wanted[1]}."
            )
        if not batch.isfinite().all():
            raise ConfigurationError(
                f"Calibration batch {number} holds values that are not finite. Leave those images "
                "out, or look at how they are normalised."
            )
    return batches


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
            "A format that quantizes measures its ranges on images, and there are 0. Give images "
            "with data.root=DIR, or leave that format out."
        )
    if validation is None:
        raise ConfigurationError(
            f"A format that quantizes is judged by its accuracy, but {note}. Give images with "
            "data.root=DIR, or leave that format out."
        )


@dataclass(frozen=True)
class Quantized:
    """What became of the forms in 8 bits.

    Args:
        report: Of those that were judged, or None if none was.
        accepted: By name of those that were written, whether they are accurate enough.
        notes: Why those that nobody asked for by name are not chosen.
        scores: By name, what those that were judged give for `pictures`, for another machine to
            compare.
    """

    report: QuantizationReport | None = None
    accepted: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scores: Mapping[str, Scores] = field(default_factory=dict)


def write_quantized(formats: Sequence[Format], export: Export, validation: Validation) -> Quantized:
    """Write each quantized form, load it from its file and compare it on the validation images.

    Args:
        formats: All that were chosen; the exact ones are left out.
        export: What is written.
        validation: Run through for each form.

    Raises:
        ConfigurationError: if there are no validation images.
        VerificationError: if a form loses too much.
        RepblocksError: if it cannot be written.
    """
    chosen = [form for form in formats if form.lossy]
    if not chosen:
        return Quantized()
    judge = _Judge(export, validation)
    for form in chosen:
        judge.write(form)
    accepted = {form.name: True for form in chosen}
    return Quantized(judge.report(), accepted, scores=judge.scores)


def try_quantized(
    known: Quantized, export: Export, validation: Validation | None, note: str, *, choose: bool
) -> Quantized:
    """Write the quantized forms that nobody asked for, to be timed with the others.

    Args:
        known: What became of those that were asked for.
        export: What is written.
        validation: Run through for each form that may be chosen.
        note: Why there is none.
        choose: Whether one may be chosen by its accuracy; otherwise that is not measured.

    Returns:
        All of them.
    """
    tried = [form for form in quantizing_formats() if form.name not in known.accepted]
    if not tried:
        return known
    try:
        check_images(export.calibration, validation if choose else (), note)
    except ConfigurationError as error:
        return replace(known, notes=(f"No INT8 form was timed. {error}",))
    judge = _Judge(export, validation or (), known)
    accepted, notes = dict(known.accepted), []
    for form in tried:
        try:
            if choose:
                judge.write(form)
            else:
                written(form, export)
            accepted[form.name] = choose
        except VerificationError as error:
            accepted[form.name] = False
            notes.append(f"{form.name} is not chosen: {error}")
        except RepblocksError as error:
            notes.append(f"{form.name} was not timed: {error}")
    if not choose:
        notes.append(_unjudged([form.name for form in tried if form.name in accepted], export))
    return Quantized(judge.report(), accepted, tuple(filter(None, notes)), judge.scores)


def _unjudged(names: Sequence[str], export: Export) -> str:
    """Say how forms that were timed alone can be chosen."""
    largest = export.quantization.largest_drop
    bound = "any number of" if largest is None else f"at most {largest:g}"
    return (
        f"{', '.join(names)}: timed, not chosen, as 8 bits can change the accuracy, which was not "
        f"measured. With quantization.auto=true, export=auto takes one that loses {bound} points "
        "of top-1; export=int8 writes it."
    ) * bool(names)


class _Judge:
    """Writes forms and compares each with the network in float32, image for image."""

    def __init__(
        self, export: Export, validation: Validation, known: Quantized | None = None
    ) -> None:
        self._export, self._validation = export, validation
        self._known = known.report if known else None
        self._forms: dict[str, Agreement] = dict(self._known.forms) if self._known else {}
        self.scores: dict[str, Scores] = dict(known.scores) if known else {}

    def write(self, form: Format) -> None:
        """Write a form and judge it.

        Raises:
            ConfigurationError: if there are no validation images.
            VerificationError: if it loses too much.
            RepblocksError: if it cannot be written.
        """
        export = self._export
        run = written(form, export)
        found = None if run is None else compare_predictions(export.model, run, self._validation)
        if run is None or found is None:
            raise ConfigurationError(f"{form.file} cannot be judged on 0 validation images.")
        self._forms[form.name] = found
        self.scores[form.name] = plain(excerpt(run(pictures(export.example.shape[1:]))))
        check_drop(form.file, found, export.quantization.largest_drop)

    def report(self) -> QuantizationReport | None:
        """Give what was found, with what each layer loses; None if nothing was judged."""
        if not self._forms:
            return None
        config, batches = self._export.quantization, self._export.calibration
        layers = self._known.layers if self._known else self._layers()
        count = sum(map(len, batches))
        return QuantizationReport(config, count, layers, self._forms)

    def _layers(self) -> tuple[LayerFriendliness, ...]:
        config = self._export.quantization
        images = torch.cat(list(self._export.calibration))[: config.report_images]
        batches = torch.split(images, _REPORT_BATCH)
        return measure_friendliness(self._export.model, batches, half_range=config.half_range)
