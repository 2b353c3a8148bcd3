"""Depthwise convolutions and their gradients at any stride, compiled for the CPU by numba.

Shapes: x ``(N, C, H, W)`` of any strides, K taps. Results are written into the last arguments, for
the channels ``start`` to ``stop - 1``. See :mod:`repblocks.execution.flat_images` for the rest.
"""

# ruff: noqa: ANN001, ANN201 - numba infers the types
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

import numpy as np

from repblocks.execution.compiled_loops import add, add_taps, compiled, dot_taps, read, write


@compiled
def correlate(x, weight, bias, places, source, target, sizes, start, stop, y):
    """Write the bias ``(C,)`` and the taps of x, weighted by ``(C, K)``, to the target's rows."""
    stack, block, length = sizes
    flat, done = np.zeros(length, x.dtype), np.zeros(stack * block, x.dtype)
    zero = x.dtype.type(0)
    for c in range(start, stop):
        for n in range(0, len(x), stack):
            images = n, min(n + stack, len(x))
            count = images[1] - n
            read(x, c, images, zero, source[0], source[1], block, flat)
            own = done[: count * block]
            own[:] = bias[c]
            add_taps(own, weight[c], flat, places)
            write(own, target[0], target[1], block, c, images, y)


@compiled
def products(x, g, centre, places, source, target, sizes, start, stop, found, summed):
    """Add the products ``(C, K)`` of g and the taps of x less the centre, and sum the images of g.

    The sums ``(C, block)`` are flat.
    """
    stack, block, length = sizes
    flat, own = np.zeros(length, x.dtype), np.zeros(stack * block, x.dtype)
    zero = x.dtype.type(0)
    for c in range(start, stop):
        for n in range(0, len(x), stack):
            images = n, min(n + stack, len(x))
            count = images[1] - n
            read(x, c, images, centre[c], source[0], source[1], block, flat)
            read(g, c, images, zero, target[0], target[1], block, own)
            dot_taps(found[c], own[: count * block], flat, places)
            for m in range(count):
                add(summed[c], 1, own[m * block :])
