"""The folder of a run, which a run that fails at once does not leave behind."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from repblocks.errors import CheckpointError

CHECKPOINTS = "checkpoints"


def run_name(model_name: str | None, block: str | None, experiment: str | None) -> str:
    """Name a run after its experiment, or its network and block."""
    if experiment:
        return experiment
    return "-".join(part for part in (model_name, block) if part and part != "default")


@contextlib.contextmanager
def run_folder(chosen: str | None, composed: str, ckpt_path: Path | None) -> Iterator[Path]:
    """Give the folder of a run; without a file in it, it is gone afterwards.

    Args:
        chosen: What the user asked for.
        composed: The folder that Hydra made for this run.
        ckpt_path: The checkpoint to continue from: the run then goes on in its own folder.
    """
    if rank_zero_only.rank:  # the first process writes everything
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        remove_empty(Path(composed))
        return
    is_continued = ckpt_path is not None and ckpt_path.parent.name == CHECKPOINTS
    own = ckpt_path.absolute().parents[1] if ckpt_path and is_continued else composed
    output = Path(chosen or own)
    try:
        yield output
    finally:
        for folder in (output, Path(composed)):
            remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder if there is no file in it, and the folders above it that are empty then."""
    if not folder.is_dir() or any(path.is_file() for path in folder.rglob("*")):
        return
    inside = sorted((path for path in folder.rglob("*")), reverse=True)
    with contextlib.suppress(OSError):
        for path in (*inside, folder, *folder.parents):
            if path == Path.cwd():
                return
            path.rmdir()


def newest_run_checkpoint(outputs: Path) -> Path:
    """Find the best checkpoint of the newest run, or its last one.

    Raises:
        CheckpointError: if there is none.
    """
    found = [*outputs.rglob(f"{CHECKPOINTS}/*.ckpt")]
    if not found:
        raise CheckpointError(
            f"There is no checkpoint in {outputs.absolute()}. Train first, or name one with "
            "ckpt_path=FILE."
        )
    folder = max(found, key=lambda path: path.stat().st_mtime_ns).parent
    best = folder / "best.ckpt"
    return best if best.exists() else max(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns)
