"""``manifest.json``: what an artifact was when it was written, so that a copy can be checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from repblocks.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:  # the formats read artifacts, whose files are checked here
    from repblocks.deployment.formats import Format

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 2
_SEAL = "sha256"
_AGAIN = "Copy the artifact again, or deploy the checkpoint again."


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact.

    Args:
        bytes: Its size.
        sha256: Of its content.
        form: The export format that wrote it, if one did.
        executable: It holds code or a pickle, which runs when the file is opened.
    """

    bytes: int
    sha256: str
    form: str | None
    executable: bool


def describe_files(folder: Path, formats: Iterable[Format], **about: Any) -> dict[str, Any]:
    """Give the content of a manifest for all files that are in a folder.

    Args:
        folder: The artifact, complete.
        formats: What is in it.
        about: Plain values that the manifest says besides; numbers that are not finite become
            their names.

    Returns:
        With a hash of all of it.

    Raises:
        ConfigurationError: if a value is not plain.
    """
    owners = {name: form for form in formats for name in form.files}
    entries = {}
    for name in files_in(folder):
        path, form = folder / name, owners.get(_top(name))
        written_by, executable = (form.name, form.executable) if form else (None, False)
        entries[name] = FileEntry(path.stat().st_size, _sha256(path), written_by, executable)
    files = {name: asdict(entry) for name, entry in entries.items()}
    return sealed({"manifest_version": MANIFEST_VERSION, "files": files, **about})


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Give plain values with a hash of them.

    Raises:
        ConfigurationError: if one is not plain.
    """
    try:
        plain = json.loads(json.dumps(content), parse_constant=str)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{MANIFEST_FILE} can hold plain values only (dict, list, str, int, float, bool, "
            f"None): {error}."
        ) from error
    return {**plain, _SEAL: _digest(plain)}


def _digest(content: dict[str, Any]) -> str:
    """Hash everything but the hash itself, in whatever order it is written."""
    rest = {key: value for key, value in content.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: if that is not possible.
        ValueError: if it is none, or a number in it is not finite.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def listed_files(folder: Path) -> set[str]:
    """Give the names in a manifest, which may be of another version; none if there is none."""
    try:
        return {*read_json(folder / MANIFEST_FILE)["files"]}
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return set()


def files_in(folder: Path) -> list[str]:
    """List the files of an artifact by their paths in it, without the manifest."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in found)
    return sorted(name for name in names if name != MANIFEST_FILE)


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """Read the entries of the manifest.

    Raises:
        CheckpointError: if it is missing, damaged, changed or of another version, or names a file
            outside of the folder.
    """
    path = folder / MANIFEST_FILE
    try:
        content = _object("it", read_json(path))
        version = content.get("manifest_version")
        files = _object("files", content["files"]) if version == MANIFEST_VERSION else {}
        entries = {name: FileEntry(**_object(name, entry)) for name, entry in files.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {type(error).__name__} {error}. {_AGAIN}"
        ) from error
    if version != MANIFEST_VERSION:
        raise CheckpointError(
            f"{path} has version {version!r}; this version of repblocks reads {MANIFEST_VERSION}. "
            "Deploy the checkpoint again."
        )
    for name, entry in entries.items():
        _check_name(path, name)
        _check_types(path, name, entry)
    if content.get(_SEAL) != _digest(content):
        raise CheckpointError(
            f"{path} is not what was written: its own sha256 is {_digest(content)[:12]}... instead "
            f"of {str(content.get(_SEAL))[:12]}... {_AGAIN}"
        )
    return entries


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be an object, got a {type(value).__name__}")
    return value


def check_file(folder: Path, name: str, entry: FileEntry) -> None:
    """Check that a file is the one that was written.

    Raises:
        CheckpointError: if it is missing, is a link, or has another content.
    """
    path = folder / name
    parts = [path, *path.parents]
    linked = [one for one in parts[: parts.index(folder)] if one.is_symlink()]
    if linked:
        raise CheckpointError(
            f"{linked[0]} is a link, and an artifact holds its files itself. Nothing was read. "
            "Copy the folder with what its links point to: cp -rL."
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, and {MANIFEST_FILE} lists it. {_AGAIN}")
    size = path.stat().st_size
    if size != entry.bytes:
        raise CheckpointError(
            f"{path} is not the file that was written: it has {size} bytes instead of "
            f"{entry.bytes}. {_AGAIN}"
        )
    found = _sha256(path)
    if found != entry.sha256:
        raise CheckpointError(
            f"{path} is not the file that was written: its sha256 is {found[:12]}... instead of "
            f"{str(entry.sha256)[:12]}... {_AGAIN}"
        )


def check_files(folder: Path, *names: str, form: Format | None = None) -> None:
    """Check some files against the manifest, if the artifact has one.

    Args:
        folder: The artifact.
        names: Files that are about to be read.
        form: The export format whose files are about to be read, all that are there.

    Raises:
        CheckpointError: if one is not listed, or not the one that was written.
    """
    if not (folder / MANIFEST_FILE).exists():
        return
    entries = read_manifest(folder)
    of_form = [name for name, entry in entries.items() if form and entry.form == form.name]
    missing = [name for name in names if name not in entries]
    missing += [f"the form {form.name!r}"] if form and not of_form else []
    there = files_in(folder) if form and of_form else []
    missing += [n for n in there if form and _top(n) in form.files and n not in of_form]
    if missing:
        raise CheckpointError(
            f"{folder / MANIFEST_FILE} does not list {', '.join(missing)}. {_AGAIN}"
        )
    for name in (*names, *of_form):
        check_file(folder, name, entries[name])


def _top(name: str) -> str:
    """Give the file or folder of the artifact that a file is, or is in."""
    return PurePosixPath(name).parts[0]


def _check_types(path: Path, name: str, entry: FileEntry) -> None:
    given = (entry.bytes, entry.sha256, entry.form, entry.executable)
    kinds = (int, str, str | None, bool)
    if not all(map(isinstance, given, kinds)):
        raise CheckpointError(f"{path} says of {name!r} what cannot be: {asdict(entry)}. {_AGAIN}")


def _check_name(path: Path, name: str) -> None:
    """Refuse a name that leads out of the folder, or is none on some system."""
    pure = PurePosixPath(name)
    is_plain = name == pure.as_posix() and not pure.is_absolute() and ".." not in pure.parts
    if not is_plain or any(c in name for c in "\0\\:") or name in ("", ".", MANIFEST_FILE):
        raise CheckpointError(
            f"{path} lists {name!r}, which is no file inside of the artifact. Nothing was read. "
            "Do not use this artifact."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
