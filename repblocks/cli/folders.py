"""The folder of a run, which a run that fails at once does not leave behind."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from repblocks.errors import CheckpointError

CHECKPOINTS = "checkpoints"


def is_first_process() -> bool:
    """Tell whether this process is the one that writes."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    return bool(getattr(rank_zero_only, "rank", 0) == 0)


@contextlib.contextmanager
def run_folder(chosen: str | None, composed: str, ckpt_path: Path | None) -> Iterator[Path]:
    """Give the folder of a run; if the run leaves no file, it leaves no folder.

    Args:
        chosen: What the user asked for.
        composed: The folder that Hydra made for this run.
        ckpt_path: The checkpoint to continue from: the run then goes on in its own folder.
    """
    if not is_first_process():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        remove_empty(Path(composed))
        return
    continued = run_of(ckpt_path) if ckpt_path else None
    own = _readable(Path(composed)) if continued is None else continued
    output = Path(chosen) if chosen else own
    is_new = not output.exists() or not chosen
    try:
        yield output
    finally:
        if is_new:
            remove_empty(output)
        remove_empty(Path(composed))


def run_of(checkpoint: Path) -> Path | None:
    """Give the folder of the run that a checkpoint lies in, or None for a lone file."""
    path = checkpoint if checkpoint.parent.name else checkpoint.absolute()
    return path.parents[1] if path.parent.name == CHECKPOINTS else None


def remove_empty(folder: Path) -> None:
    """Remove a folder without files, and the folders above it that are empty then.

    Neither the working folder nor anything above or beside it is removed.
    """
    folder, here = folder.resolve(), Path.cwd().resolve()
    is_kept = not folder.is_dir() or folder == here or folder in here.parents
    if is_kept or any(not path.is_dir() for path in folder.rglob("*")):
        return
    above = [path for path in folder.parents if here in path.parents]
    with contextlib.suppress(OSError):
        for path in (*sorted(folder.rglob("*"), reverse=True), folder, *above):
            path.rmdir()


def _readable(folder: Path) -> Path:
    """Name a folder below the working folder from there."""
    here = Path.cwd()
    return folder.relative_to(here) if here in folder.parents else folder


def newest_run_checkpoint(*folders: Path) -> Path:
    """Find the best checkpoint of the newest run, or its last one.

    Args:
        folders: Where to search, at any depth.

    Raises:
        CheckpointError: if there is none.
    """
    found = [path for folder in folders for path in folder.rglob(f"{CHECKPOINTS}/*.ckpt")]
    if not found:
        raise CheckpointError(
            f"There is no checkpoint in {' or '.join(str(one.absolute()) for one in folders)}. "
            "Train first, or name one with ckpt_path=FILE, as for a run with output=DIR elsewhere."
        )
    folder = max(found, key=lambda path: path.stat().st_mtime_ns).parent
    best = folder / "best.ckpt"
    return best if best.exists() else max(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns)
