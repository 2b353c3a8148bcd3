"""The folder of a run: it belongs to one run, and a run that came to nothing leaves nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.training.saving import newest_checkpoint

CHECKPOINTS, METRICS = "checkpoints", "metrics.csv"


@contextlib.contextmanager
def claimed(output: Path, ckpt_path: Path | None) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it.

    If the body fails before there is a checkpoint, what it wrote is removed, unless the folder
    held something before.

    Args:
        output: The folder.
        ckpt_path: The checkpoint to continue from, if there is one.

    Raises:
        ConfigurationError: if the folder cannot be made, or is that of another run; it is unchanged
            then.
    """
    was_there = output.exists()
    _make_folder(output)
    with _locked(output):
        _refuse_other_run(output, ckpt_path)
        was_empty = not any(output.iterdir())
        try:
            yield
        except BaseException:
            if was_empty and not _has_checkpoint(output):
                _clear(output, keep_folder=was_there)
            raise


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot write into the output folder: {error}. Choose a folder that you may write to, "
            "or one that does not exist."
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it when the process ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConfigurationError(
            f"Another process is writing a run into {folder}. Wait until it ends, or choose "
            "another folder with output=DIR."
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def _refuse_other_run(output: Path, ckpt_path: Path | None) -> None:
    """Never write a run over another one."""
    checkpoints = output / CHECKPOINTS
    is_free = not (output / METRICS).exists() and not _has_checkpoint(output)
    if is_free or (ckpt_path and ckpt_path.resolve().parent == checkpoints.resolve()):
        return
    try:
        newest = newest_checkpoint(checkpoints)
        way_out = f"or continue the run with ckpt_path={shlex.quote(str(newest))}"
    except CheckpointError:
        way_out = "or remove it, it has no checkpoint to continue from"
    other = f" another run than that of {ckpt_path}" if ckpt_path else " a run"
    raise ConfigurationError(
        f"{output} already holds{other}. Nothing was changed. Choose another folder, {way_out}."
    )


def _has_checkpoint(output: Path) -> bool:
    return any((output / CHECKPOINTS).glob("*.ckpt"))


def _clear(folder: Path, *, keep_folder: bool) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if not keep_folder:
            folder.rmdir()
