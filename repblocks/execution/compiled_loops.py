"""What all compiled loops are made of."""

# ruff: noqa: ANN001, ANN201 - numba infers the types
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

from numba import njit

#: Sums may be taken in any order; infinities and NaN stay what they are.
compiled: Any = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


@compiled
def dot(a, b):
    """Return the sum of the products of two vectors."""
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total += a[i] * b[i]
    return total


@compiled
def add(target, factor, a):
    """Add a multiple of a vector to the target, whose length counts."""
    for i in range(len(target)):
        target[i] += factor * a[i]
