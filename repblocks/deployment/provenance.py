"""Which code wrote an artifact: versions of packages, and the commit of a checkout."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repblocks.deployment.formats import Format, packages_of

_PACKAGES = ("repblocks", "torch", "timm", "safetensors", "onnx", "onnxscript", "onnxruntime")


def versions(formats: Iterable[Format] = ()) -> dict[str, str]:
    """Give the versions of Python and of the packages that write an artifact of these formats."""
    more = [name for form in formats for name in packages_of(form.extra)]
    packages = {name: version(name) for name in (*_PACKAGES, *more)}
    return {"python": platform.python_version(), **packages}


def code_state() -> dict[str, Any] | None:
    """Give the git commit of this package's checkout, and whether its files were changed since.

    Returns:
        ``commit`` and ``dirty``, or None for an installed package.
    """
    here = Path(__file__)
    if _git("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", ":/")
    return None if commit is None or changes is None else {"commit": commit, "dirty": changes != ""}


def _git(*arguments: str) -> str | None:
    """Ask git about this file's folder; None if there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()
