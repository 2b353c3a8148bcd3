"""Write the files of an artifact so that an error names the one that it is about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from repblocks.errors import ConfigurationError, RepblocksError, VerificationError


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
