"""What all compiled loops are made of.

Images of one channel lie in flat memory, zeros between them, so that a tap is the same memory read
from another place on. A stack of them is as large as the first-level cache holds.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

from numba import njit

#: Sums may be taken in any order; infinities and NaN stay what they are.
compiled: Any = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
#: Values of a target that stay in registers' reach while all taps are added to it.
_PART = 2048


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


@compiled
def add_taps(target, factors, flat, places):
    """Add ``flat`` from each place on, times its factor, to the target, whose length counts."""
    for start in range(0, len(target), _PART):
        part = target[start : start + _PART]
        own = flat[start:]
        fives = len(places) // 5 * 5
        for k in range(0, fives, 5):
            _add_five(part, factors[k : k + 5], own, places[k : k + 5])
        for k in range(fives, len(places)):
            add(part, factors[k], own[places[k] :])


@compiled
def _add_five(target, f, flat, places):
    a0, a1, a2 = flat[places[0] :], flat[places[1] :], flat[places[2] :]
    a3, a4 = flat[places[3] :], flat[places[4] :]
    f0, f1, f2, f3, f4 = f[0], f[1], f[2], f[3], f[4]
    for i in range(len(target)):
        target[i] += f0 * a0[i] + f1 * a1[i] + f2 * a2[i] + f3 * a3[i] + f4 * a4[i]


@compiled
def dot_taps(products, own, flat, places):
    """Add the products of a vector with ``flat`` from each place on to the float64 products."""
    for start in range(0, len(own), _PART):
        part = own[start : start + _PART]
        read = flat[start:]
        fives = len(places) // 5 * 5
        for k in range(0, fives, 5):
            _dot_five(products[k : k + 5], part, read, places[k : k + 5])
        for k in range(fives, len(places)):
            products[k] += dot(part, read[places[k] :])


@compiled
def _dot_five(products, own, flat, places):
    a0, a1, a2 = flat[places[0] :], flat[places[1] :], flat[places[2] :]
    a3, a4 = flat[places[3] :], flat[places[4] :]
    zero = own.dtype.type(0)
    s0, s1, s2, s3, s4 = zero, zero, zero, zero, zero
    for i in range(len(own)):
        s0 += own[i] * a0[i]
        s1 += own[i] * a1[i]
        s2 += own[i] * a2[i]
        s3 += own[i] * a3[i]
        s4 += own[i] * a4[i]
    products[0] += s0
    products[1] += s1
    products[2] += s2
    products[3] += s3
    products[4] += s4


@compiled
def read(x, c, images, mean, parts, step, block, flat):
    """Copy images of a channel, less a number, one for each block of the flat memory.

    The images are ``(first, last + 1)``. A part of a row is its number, its first column, where it
    is copied to, and how many columns, ``step`` apart.
    """
    first, stop = images
    for n in range(first, stop):
        for k in range(len(parts)):
            row = x[n, c, parts[k, 0], parts[k, 1] :]
            target = flat[(n - first) * block + parts[k, 2] :][: parts[k, 3]]
            if step == 1:
                for q in range(len(target)):
                    target[q] = row[q] - mean
            else:
                for q in range(len(target)):
                    target[q] = row[step * q] - mean


@compiled
def write(flat, parts, step, block, c, images, y):
    """Copy what :func:`read` copies, from the flat memory to the images."""
    first, stop = images
    for n in range(first, stop):
        for k in range(len(parts)):
            row = y[n, c, parts[k, 0], parts[k, 1] :]
            own = flat[(n - first) * block + parts[k, 2] :][: parts[k, 3]]
            if step == 1:
                for q in range(len(own)):
                    row[q] = own[q]
            else:
                for q in range(len(own)):
                    row[step * q] = own[q]
