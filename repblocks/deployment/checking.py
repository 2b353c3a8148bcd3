"""Check an artifact again, on this machine: its files, its configuration, and every form it has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor

from repblocks.deployment.artifact import REPORT_FILE
from repblocks.deployment.formats import Format, get_format, list_formats
from repblocks.deployment.formats._pixels import on_pixels
from repblocks.deployment.load import CONFIG_FILE, WEIGHTS_FILE, is_rebuildable, read_config
from repblocks.deployment.manifest import (
    MANIFEST_FILE,
    FileEntry,
    check_file,
    files_in,
    read_json,
    read_manifest,
)
from repblocks.deployment.opening import open_form
from repblocks.deployment.preparing import image_size, labels_of, preparation
from repblocks.deployment.probing import (
    SCORES,
    deviation,
    excerpt,
    pictures,
    probes,
    relative,
    spread,
)
from repblocks.errors import CheckpointError, ConfigurationError

# A quantized form may differ so far from what it gave when it was written, as kernels round
# differently on other processors. ONNX Runtime with and without its optimizer and with 1 or 2
# threads differs by at most 0.004, another form by more than 1.
_ROUNDED = 0.1
# Older artifacts do not say what it gave, only how far it was from the others: it may differ so
# many times as far, and so much besides; or so far, if not even that was measured.
_MORE, _FLOOR, _LOSSY = 3.0, 0.05, 1.0
_LOOSE = "; a loose bound alone, as this older artifact does not say what the form gave"
_DAMAGED = "its files are not those that were written"
_WRONG = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError)
_NO_FORMS = "none of a network for images; a folded ONNX file was compared when it was written"


@dataclass(frozen=True)
class Check:
    """What was found about one thing.

    Args:
        name: A file, or a form.
        status: ``skipped`` where it could not be checked here.
        note: What was found, or why it was skipped.
    """

    name: str
    status: Literal["passed", "failed", "skipped"]
    note: str = ""


def check_artifact(folder: str | Path, *, trust: bool = False) -> list[Check]:
    """Check the files of an artifact against its manifest, and its forms against each other.

    A form is opened if its files are those that were written. All exact forms are run on the same
    seeded images, and may differ as far as the two of them may differ from the training form, as
    the report says. A quantized form is another function, so it is compared with what it gave
    itself when it was written.

    Args:
        folder: What ``deploy.py`` wrote, or a copy of it.
        trust: Whether forms that hold code are opened.

    Raises:
        CheckpointError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}. Give the folder that deploy.py wrote.")
    try:
        entries = read_manifest(folder)
    except CheckpointError as error:
        return [Check(MANIFEST_FILE, "failed", str(error))]
    files = [_check_file(folder, name, entries.get(name)) for name in _names(folder, entries)]
    wrong = {check.name for check in files if check.status == "failed"}
    if wrong & {CONFIG_FILE, REPORT_FILE}:
        return [*files, Check("forms", "skipped", "config.json and report.json are needed")]
    forms = {str(entry.form) for entry in entries.values() if entry.form}
    try:
        config = read_config(folder)
        if not forms or "preprocessing" not in config:
            return [*files, Check("forms", "skipped", _NO_FORMS)]
        report = _Report.read(folder)
        size = image_size(config, folder / CONFIG_FILE)
    except CheckpointError as error:
        return [*files, Check("forms", "failed", str(error))]
    damaged = {str(entries[name].form) for name in wrong & entries.keys()}
    files += _check_config(folder, config)
    comparison = _Comparison(folder, size, report, config.get("num_classes"))
    known = [form for form in map(get_format, list_formats()) if form.name in forms]
    known.sort(key=lambda form: (form.file != WEIGHTS_FILE, form.lossy, form.executable))
    return [
        *files,
        *(comparison.check(form, trust) for form in known if form.name not in damaged),
        *(Check(name, "failed", _DAMAGED) for name in sorted(damaged & forms)),
    ]


def _names(folder: Path, entries: Mapping[str, FileEntry]) -> list[str]:
    return sorted({CONFIG_FILE, REPORT_FILE, *entries, *files_in(folder)})


def _check_file(folder: Path, name: str, entry: FileEntry | None) -> Check:
    if entry is None:
        return Check(name, "failed", f"{MANIFEST_FILE} does not list it")
    owner = _owners().get(PurePosixPath(name).parts[0])
    if entry.form not in (None, *list_formats()):
        return Check(name, "failed", f"is of the format {entry.form!r}, which is unknown")
    if entry.form != owner:
        return Check(name, "failed", f"is of the format {owner}, and listed as {entry.form}")
    if owner and get_format(owner).executable != entry.executable:
        return Check(name, "failed", f"marked executable: {entry.executable}, which is not so")
    try:
        check_file(folder, name, entry)
    except CheckpointError as error:
        return Check(name, "failed", str(error))
    return Check(name, "passed", "holds code" if entry.executable else "")


def _owners() -> dict[str, str]:
    """Name the format of each file that a format may write."""
    formats = map(get_format, list_formats())
    return {file: form.name for form in formats for file in form.files}


class _Comparison:
    """Run forms on the same images, and compare each with the first one, or with a record."""

    def __init__(
        self, folder: Path, size: Sequence[int], report: _Report, num_classes: int | None
    ) -> None:
        self.folder, self.report, self.num_classes = folder, report, num_classes
        self.images = [_as_pixels(batch, folder) for batch in probes(size)]
        self.pictures = pictures(size)
        self.reference: tuple[str, Tensor, float] | None = None

    def check(self, form: Format, trust: bool) -> Check:
        """Open a form, run it, and compare its scores."""
        if form.file == WEIGHTS_FILE and not is_rebuildable(self.folder):
            return Check(form.name, "skipped", "weights alone; no name rebuilds their network")
        try:
            opened = open_form(self.folder, form, trust=trust)
            scores, others = (opened(images).double() for images in self.images)
            recorded = self.report.scores.get(form.name) if form.lossy else None
            found = None if recorded is None else excerpt(opened(self.pictures))
        except ConfigurationError as error:
            return Check(form.name, "skipped", str(error))
        except CheckpointError as error:
            return Check(form.name, "failed", str(error))
        if self.num_classes is not None and scores.shape[-1] != self.num_classes:
            text = f"gives {scores.shape[-1]} scores, and {CONFIG_FILE} says {self.num_classes}"
            return Check(form.name, "failed", text)
        if recorded is not None and found is not None:
            what = "what it gave when it was written"
            return _judged(form, found, recorded, what, deviation(recorded), _ROUNDED)
        if self.reference is None:
            self.reference = (form.name, scores, spread(scores, others))
            note = "runs; the others are compared with it"
            return Check(form.name, "passed", note + _LOOSE * form.lossy)
        name, expected, scale = self.reference
        unknown = _LOSSY if form.lossy else 0.0
        allowed = self.report.tolerances.get(form.name, unknown)
        allowed += self.report.tolerances.get(name, 0.0)
        check = _judged(form, scores, expected, name, scale, allowed)
        return replace(check, note=check.note + _LOOSE * form.lossy)


def _as_pixels(images: Tensor, folder: Path) -> Tensor:
    """Give images that a form which takes pixels can be given, if any form can take them."""
    try:
        return on_pixels(images, folder)
    except ConfigurationError:
        return images


def _judged(
    form: Format, scores: Tensor, expected: Tensor, what: str, scale: float, allowed: float
) -> Check:
    if scores.shape != expected.shape:
        shapes = f"{tuple(scores.shape)} instead of {tuple(expected.shape)}"
        return Check(form.name, "failed", f"gives scores of shape {shapes}")
    found = relative(scores, expected, scale)
    verdict: Literal["passed", "failed"] = "passed" if found <= allowed else "failed"
    return Check(form.name, verdict, f"differs from {what} by {found:.2e}, allowed {allowed:.2e}")


def _check_config(folder: Path, config: Mapping[str, Any]) -> list[Check]:
    """Check that images can be prepared and labelled as the configuration says."""
    path, found = folder / CONFIG_FILE, []
    try:
        preparation(config, path)
    except ConfigurationError as error:  # not given, or not of images: only predict needs it
        found.append(Check("preprocessing", "skipped", str(error)))
    except CheckpointError as error:
        found.append(Check("preprocessing", "failed", str(error)))
    try:
        labels_of(config, path)
    except CheckpointError as error:
        found.append(Check("class_names", "failed", str(error)))
    return found


@dataclass(frozen=True, eq=False)
class _Report:
    """What the report says about the forms.

    Args:
        tolerances: By name, how far each may be from the training form.
        scores: By name, what quantized ones gave for `pictures`.
    """

    tolerances: Mapping[str, float]
    scores: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> _Report:
        path = folder / REPORT_FILE
        try:
            report: Any = read_json(path)
            exact = {name: float(form["tolerance"]) for name, form in report["forms"].items()}
            measured = (report.get("quantization") or {}).get("differences") or {}
            lossy = {name: _MORE * float(found) + _FLOOR for name, found in measured.items()}
            if not all(map(math.isfinite, (exact | lossy).values())):
                raise ValueError("one is not finite")
            return cls(exact | lossy, _scores(report))
        except _WRONG as error:
            raise CheckpointError(
                f"{path} holds no tolerances of its forms: {type(error).__name__} {error}."
            ) from error


def _scores(report: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read what the quantized forms gave; nothing in an older report.

    Raises:
        ValueError: if that is no table of finite numbers; other classes if the report is none.
    """
    given = (report.get("measured") or {}).get(SCORES) or {}
    found = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in given.items()}
    if not all(one.ndim == 2 and one.isfinite().all() for one in found.values()):
        raise ValueError(f"measured.{SCORES} holds no tables of finite numbers")
    return found
