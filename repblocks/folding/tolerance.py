"""How far a folded or exported form may be from the truth: the one table by dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """What rounding alone may do to an output.

    Args:
        signal: Allowed RMS error relative to how much the output depends on the input.
        size: Allowed RMS error relative to the RMS of the output.
        useful: Where more than this share of the signal is allowed, the output tells too little.
    """

    signal: float
    size: float
    useful: float = 1e-3


# float64 judges the algebra, so only its own rounding is allowed. In the narrower types what
# rounding did to this network on this input (see `limit`) is allowed besides.
TOLERANCES = {
    torch.float64: Tolerance(signal=1e-10, size=1e-14),
    torch.float32: Tolerance(signal=0.0, size=1e-7),
    torch.float16: Tolerance(signal=0.0, size=2e-3, useful=0.1),
    torch.bfloat16: Tolerance(signal=0.0, size=1e-2, useful=1.0),
}

# Two samples of one rounding error differ by a factor of about three where an output has few
# values or these err together. What is wrong is wrong by orders of magnitude.
SAMPLES = 10.0


def limit(dtype: torch.dtype, *, size: float, signal: float, rounding: float) -> float:
    """Give the largest RMS error that is explained by rounding.

    Args:
        dtype: The type that was rounded to.
        size: RMS of the true output.
        signal: RMS of the part of the true output that depends on the input.
        rounding: RMS error that rounding to ``dtype`` was seen to make.
    """
    allowed = TOLERANCES[dtype]
    return SAMPLES * rounding + allowed.signal * min(size, signal) + allowed.size * size
