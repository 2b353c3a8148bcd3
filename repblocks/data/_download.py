"""Download a data set once, however many processes ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from repblocks.errors import DataError


def download_missing(
    name: str, folder: Path, is_missing: Callable[[], bool], download: Callable[[], object]
) -> None:
    """Download what is missing; of several processes one does so, and the others wait for it.

    Processes that were started together know nothing of each other yet, so they meet at a file.

    Args:
        name: What to call it in a message.
        folder: Where it goes.
        is_missing: Tells whether it has to be downloaded.
        download: Does it.

    Raises:
        DataError: if it cannot be had.
    """
    if not is_missing():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):
            if is_missing():
                download()
    except (OSError, EOFError, RuntimeError) as error:
        raise DataError(
            f"{name} could not be downloaded into {folder.resolve()}: {error}. Try again, or set"
            " data.root to a folder that has it."
        ) from error
