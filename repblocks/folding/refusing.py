"""Take back a part of a fold that turned out to be another function."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from torch import nn

from repblocks.errors import VerificationError


def refuse(model: nn.Module, refused: Collection[str], error: VerificationError) -> dict[str, str]:
    """Choose what is not to be looked into, as a fold of it went wrong.

    It is the smallest module around the first difference whose code is not torch's: its code asked
    for something that a trace does not see. What it calls is folded by itself.

    Args:
        model: The original.
        refused: Names of the modules that are refused already.
        error: What the verification found.

    Returns:
        Its name, and the reason for the report.

    Raises:
        VerificationError: the one that is given, if no difference was seen or nothing is left.
    """
    is_seen = error.path is not None or not math.isnan(error.difference)
    for path in _outwards(error.path or "") if is_seen else ():
        is_torchs = type(model.get_submodule(path)).__module__.startswith("torch.")
        if path not in refused and not (is_torchs and path):
            return {path: f"Its fold was undone, as it was not the same function. {error}"}
    raise error


def _outwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
