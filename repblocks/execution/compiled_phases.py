"""Moments of depthwise windows at any stride, and their gradient, compiled for the CPU by numba.

All pairs of taps are multiplied, each the flat memory of its phase from one place on, as
:class:`repblocks.execution.flat_images.FlatImages` tells.

Shapes: x ``(N, C, H, W)`` of any strides, K taps. Results are written into the last arguments, for
the channels ``start`` to ``stop - 1``.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

import numpy as np

from repblocks.execution.compiled_loops import add, add_taps, compiled, dot_taps, read


@compiled
def _mask(outputs, stack, block, like):
    """Return which places are outputs."""
    mask = np.zeros(stack * block, like.dtype)
    for n in range(stack):
        for k in range(len(outputs[0])):
            place = n * block + outputs[0][k, 2]
            mask[place : place + outputs[0][k, 3]] = 1
    return mask


@compiled
def gram(x, centre, places, source, outputs, sizes, start, stop, products, summed):
    """Add the products ``(C, K, K)`` of all pairs of taps, the upper half alone, and sum images."""
    stack, block, length = sizes
    flat, own = np.zeros(length, x.dtype), np.zeros(stack * block, x.dtype)
    mask = _mask(outputs, stack, block, x)
    for c in range(start, stop):
        for n in range(0, len(x), stack):
            images = n, min(n + stack, len(x))
            count = images[1] - n
            read(x, c, images, centre[c], source[0], source[1], block, flat)
            for m in range(n, n + count):
                for i in range(x.shape[2]):
                    row, target = x[m, c, i], summed[c, i]
                    for j in range(len(target)):
                        target[j] += row[j] - centre[c]
            for k in range(len(places)):
                tap = flat[places[k] :]
                for t in range(count * block):
                    own[t] = tap[t] * mask[t]
                dot_taps(products[c, k, k:], own[: count * block], flat, places[k:])


@compiled
def gradient(x, weight, image, places, source, outputs, sizes, start, stop, total):
    """Add the image, and the weight ``(C, K, K)`` times what is read, written back."""
    stack, block, length = sizes
    flat, done = np.zeros(length, x.dtype), np.zeros(length, x.dtype)
    mixed, mask = np.zeros(stack * block, x.dtype), _mask(outputs, stack, block, x)
    zero = x.dtype.type(0)
    for c in range(start, stop):
        for n in range(0, len(x), stack):
            images = n, min(n + stack, len(x))
            count = images[1] - n
            read(x, c, images, zero, source[0], source[1], block, flat)
            done[:] = 0
            for k in range(len(places)):
                mixed[:] = 0
                add_taps(mixed[: count * block], weight[c, k], flat, places)
                own = done[places[k] :]
                for t in range(count * block):
                    own[t] += mask[t] * mixed[t]
            _add_parts(done, source, block, c, images, image, total)


@compiled
def _add_parts(done, source, block, c, images, image, total):
    parts, step = source
    for n in range(images[0], images[1]):
        for i in range(total.shape[2]):
            add(total[n, c, i], 1, image[0, c, i])
        for k in range(len(parts)):
            row = total[n, c, parts[k, 0], parts[k, 1] :]
            own = done[(n - images[0]) * block + parts[k, 2] :]
            for q in range(parts[k, 3]):
                row[step * q] += own[q]
