"""Compare a trace with a real call: code may have asked whether its input is a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.folding.recording import parts
from repblocks.folding.state import replayed

#: Of the largest value; the operations are the same, and so should be their rounding.
_TOLERANCE = 1e-3


def is_faithful(
    traced: Any, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Tell whether a module gives what its trace gave."""
    with torch.no_grad(), replayed([module]):
        real = module.forward(*args, **kwargs)
    found, truth = parts(traced), parts(real)
    return found.keys() == truth.keys() and all(_is_close(found[k], truth[k]) for k in truth)


def _is_close(found: Tensor, truth: Tensor) -> bool:
    if found.shape != truth.shape or found.dtype != truth.dtype:
        return False
    if not truth.numel() or torch.equal(found, truth):
        return True
    kind = torch.complex128 if truth.is_complex() else torch.float64
    found, truth = found.to(kind), truth.to(kind)
    room = _TOLERANCE * float(truth.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(found, truth, rtol=_TOLERANCE, atol=room, equal_nan=True)
