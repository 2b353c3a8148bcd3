"""The artifact: one folder that appears whole or not at all, and its `config.json`."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from repblocks.deployment.load import CONFIG_FILE, FORMAT_VERSION
from repblocks.deployment.manifest import files_in, listed_files
from repblocks.errors import ConfigurationError, RepblocksError, VerificationError

REPORT_FILE = "report.json"
#: What an artifact without a manifest, as older versions wrote of ONNX files, may hold.
_USUAL = {CONFIG_FILE, REPORT_FILE, "report.md", "report.html", "model.onnx", "model.onnx.data"}
_SHOWN = 5


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a folder beside ``output`` that becomes ``output`` if the body ends without an error.

    An artifact that is already there is replaced only then. After an error everything is as it
    was before. If ``output`` is a link, what it points to is replaced.

    Raises:
        ConfigurationError: if ``output`` cannot be written, or holds something else than an
            artifact; before the body runs.
    """
    output = _resolved(output)
    check_output(output)
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.partial")
    created = [p for p in output.parents if not p.exists()]
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        _remove(folder, created)
        raise ConfigurationError(
            f"output cannot be written: {output} ({error.strerror}). Choose a folder that you "
            "may write to."
        ) from error
    try:
        yield folder
        _share(folder)
        check_output(output)  # somebody may have put a file there in the meantime
        _replace(output, folder)
    except BaseException:
        _remove(folder, created)
        raise


def check_output(output: Path, source: Path | None = None) -> None:
    """Check that an artifact may take this place: whatever is there is removed then.

    Args:
        output: A folder for it.
        source: The file that is deployed.

    Raises:
        ConfigurationError: if something else than an artifact is there, files that are not of the
            artifact are in it, or ``source`` is.
    """
    output = _resolved(output)
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not _is_artifact(output)):
        raise ConfigurationError(
            f"output exists and is not an artifact: {output}. Only an artifact or an empty folder "
            "is replaced; choose another folder or remove this one."
        )
    if source is not None and source.resolve().is_relative_to(output):
        raise ConfigurationError(
            f"{source} lies in the output {output}, which is replaced. Choose another output."
        )
    foreign = _foreign(output)
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise ConfigurationError(
            f"output is an artifact with other files in it, which would be lost: {output} holds "
            f"{', '.join(foreign[:_SHOWN])}{more}. Move them, or choose another folder."
        )


def _resolved(output: Path) -> Path:
    """Follow the links of a path.

    Raises:
        ConfigurationError: if it is none that can be written to.
    """
    try:
        resolved = output.resolve()
        resolved.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigurationError(
            f"output is no path that can be written to: {str(output)!r} ({why}). Choose another "
            "folder."
        ) from error
    return resolved


def write_config(folder: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write what timm and `repblocks.load` need to rebuild the network, and what its users need.

    Args:
        folder: Where to.
        model: The deployed network.
        description: ``model`` (``name`` and ``kwargs`` in timm's registry; without it the
            network cannot be rebuilt by name), ``num_classes``, ``preprocessing``,
            ``class_names``.
    """
    named = description.get("model")
    preprocessing = dict(description.get("preprocessing") or {})
    class_names = list(description.get("class_names") or ())
    config = {
        "architecture": named["name"] if named else type(model).__name__,
        "num_classes": description["num_classes"],
        "num_features": getattr(model, "num_features", None),
        "label_names": class_names or None,
        "model_args": {**named.get("kwargs", {}), "deploy": True} if named else {},
        "pretrained_cfg": _pretrained_cfg(model, preprocessing, description["num_classes"]),
        "format_version": FORMAT_VERSION,
        "rebuild": bool(named),
        "preprocessing": preprocessing,
        "class_names": class_names,
    }
    write_json(folder / CONFIG_FILE, {k: v for k, v in config.items() if v is not None})


@contextlib.contextmanager
def writing(file: str) -> Iterator[None]:
    """Name the file of an artifact that its body writes, and may read again.

    Raises:
        RepblocksError: if that fails; what is not possible or not the same function is raised as
            it is.
    """
    try:
        yield
    except (ConfigurationError, VerificationError):
        raise
    except Exception as error:  # exporters and runtimes raise classes of their own
        raise RepblocksError(f"{file} could not be written: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text.

    Raises:
        RepblocksError: if that fails.
    """
    with writing(path.name):
        path.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain Python values.

    Raises:
        ConfigurationError: if a value is not plain, or a number is not finite.
        RepblocksError: if the file cannot be written.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        data = text.encode("utf-8")
    except (TypeError, ValueError) as error:
        where = ", ".join(_not_finite(content)) or str(error)
        raise ConfigurationError(
            f"{path.name} can hold plain values only (dict, list, str, int, finite float, bool, "
            f"None): {where}."
        ) from error
    with writing(path.name):
        path.write_bytes(data)


def _not_finite(value: Any, path: str = "") -> Iterator[str]:
    """Name the numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{path} is {value}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{path}[{index}]")


def _pretrained_cfg(
    model: nn.Module, preprocessing: Mapping[str, Any], num_classes: int
) -> dict[str, Any]:
    """Describe weights and preprocessing in timm's words."""
    from timm.models import PretrainedCfg

    known = {field.name for field in fields(PretrainedCfg)}
    own = getattr(model, "pretrained_cfg", None) or {}
    return {
        **{key: own[key] for key in ("first_conv", "classifier", "pool_size") if key in own},
        **{key: value for key, value in preprocessing.items() if key in known},
        "num_classes": num_classes,
        "custom_load": False,
    }


def _is_artifact(folder: Path) -> bool:
    return (folder / REPORT_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def _foreign(folder: Path) -> list[str]:
    """List the files that no deployment wrote."""
    known = listed_files(folder) or _USUAL
    return [name for name in files_in(folder) if name not in known]


def _share(folder: Path) -> None:
    """Let read what is in a folder who may read the folder: some libraries write for one user."""
    mode = folder.stat().st_mode
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _replace(output: Path, folder: Path) -> None:
    """Rename the new folder into place; the old one is put back if that fails."""
    old = output.with_name(f"{folder.name}.old")
    if output.exists():
        output.rename(old)
    try:
        folder.rename(output)
    except BaseException:
        if old.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path, created: list[Path]) -> None:
    """Remove the folder, and the folders above it that were made for it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        for parent in created:
            parent.rmdir()
