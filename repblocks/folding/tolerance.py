"""How far a folded or exported form may be from the truth: the one table by dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """What rounding alone may do to an output.

    Args:
        signal: Allowed RMS error relative to how much the output depends on the input.
        size: Allowed RMS error relative to the RMS of the output.
    """

    signal: float
    size: float


# float64 judges the algebra, so only its own rounding is allowed. The narrower types round far
# more than a fold changes: there the original's own error (see `limit`) carries the judgement.
TOLERANCES = {
    torch.float64: Tolerance(signal=1e-10, size=1e-14),
    torch.float32: Tolerance(signal=0.0, size=1e-7),
    torch.float16: Tolerance(signal=0.0, size=2e-3),
    torch.bfloat16: Tolerance(signal=0.0, size=1e-2),
}

# A folded form rounds at other places than the original: twice its error is the same quality.
OWN_ERRORS = 2.0


def limit(dtype: torch.dtype, *, size: float, signal: float, own: float, count: int) -> float:
    """Give the largest RMS error that is explained by rounding.

    Args:
        dtype: The type the form was run in.
        size: RMS of the true output.
        signal: RMS of the part of the true output that depends on the input.
        own: RMS error of the original, run in ``dtype``.
        count: Number of output values. The two errors are samples: few values need more room.
    """
    allowed = TOLERANCES[dtype]
    own_errors = OWN_ERRORS * (1.0 + 4.0 / math.sqrt(count))
    return own_errors * own + allowed.signal * min(size, signal) + allowed.size * size
