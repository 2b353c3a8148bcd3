"""Moments of depthwise windows at stride 1, and their gradient, compiled for the CPU by numba.

A stack of images of one channel fits the first-level cache. It is read and centred there once, and
all products are taken from it, as :class:`repblocks.execution.lag_images.LagImages` tells.

Shapes: x ``(N, C, H, W)`` of any strides, windows of R x S taps, K = RS of them. Results are
written into the last arguments, for the channels ``start`` to ``stop - 1``.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

import numpy as np

from repblocks.execution.compiled_loops import add, add_taps, compiled, dot, dot_taps, read


@compiled
def gram(x, centre, taps, sizes, rows, lags, above, beside, start, stop, products, summed):
    """Add the products ``(C, K, K)`` of all pairs of taps, the upper half alone, and sum images.

    The sums ``(C, block)`` are flat.
    """
    stack, block, lead = sizes
    flat = np.zeros(lead * 2 + stack * block, x.dtype)
    lines, columns = _edges(above, stack, flat), _edges(beside, stack, flat)
    found = np.zeros(len(lags), np.float64)
    for c in range(start, stop):
        found[:] = 0
        for n in range(0, len(x), stack):
            images = n, min(n + stack, len(x))
            count = images[1] - n
            read(x, c, images, centre[c], rows, 1, block, flat)
            own = flat[lead:][: count * block]
            dot_taps(found, own, flat[lead:], lags)
            for m in range(count):
                add(summed[c], 1, own[m * block :])
            _collect(own, count, block, above, lines)
            _collect(own, count, block, beside, columns)
            _take(lines, above, products[c])
            _take(columns, beside, products[c])
        _spread(found, taps, products[c])


@compiled
def _edges(edges, stack, like):
    """Return the lines of the edges: their values, the images of a stack of each together."""
    return np.zeros((len(edges[0]), edges[2][3] * stack), like.dtype)


@compiled
def _collect(own, images, block, edges, lines):
    """Copy lines from the images of a stack."""
    step, count, margin = edges[2][0], edges[2][1], edges[2][2]
    stack = lines.shape[1] // edges[2][3]
    if images < stack:
        lines[:] = 0
    for e in range(len(lines)):
        for n in range(images):
            line = own[n * block + edges[0][e] :]
            for i in range(count):
                lines[e, (margin + i) * stack + n] = line[i * step]


@compiled
def _take(lines, edges, gram):
    """Take the products of windows outside away."""
    _, _, _, size, base, count, taps, along, across = edges[2]
    stack = lines.shape[1] // size
    for t, t2, line, line2 in edges[1]:
        for a in range(taps):
            first = lines[line, (base + a) * stack :][: count * stack]
            for a2 in range(taps):
                k, k2 = t * across + a * along, t2 * across + a2 * along
                if k2 >= k:
                    gram[k, k2] -= dot(first, lines[line2, (base + a2) * stack :])


@compiled
def _spread(found, taps, gram):
    """Add the products of each lag to the pairs of taps that are so far from each other."""
    rows, columns = taps
    lag = 0
    for a in range(rows):
        for b in range(1 - columns if a else 0, columns):
            for u in range(rows - a):
                for v in range(max(0, -b), columns - max(0, b)):
                    gram[u * columns + v, (u + a) * columns + v + b] += found[lag]
            lag += 1


@compiled
def _lag_kernel(weight, taps, kernel):
    """Sum a weight ``(K, K)`` over the pairs of each lag."""
    rows, columns = taps
    kernel[:] = 0
    for tap in range(rows * columns):
        for tap2 in range(rows * columns):
            a = tap2 // columns - tap // columns + rows - 1
            b = tap2 % columns - tap % columns + columns - 1
            kernel[a * (2 * columns - 1) + b] += weight[tap, tap2]


@compiled
def gradient(x, weight, image, taps, sizes, rows, lags, above, beside, start, stop, total):
    """Add the image, and the weight ``(C, K, K)`` times what is read, written back."""
    stack, block, lead = sizes
    flat = np.zeros(lead * 2 + stack * block, x.dtype)
    done, same = np.zeros(stack * block, x.dtype), np.zeros(lead + block, x.dtype)
    lines, columns = _edges(above, stack, flat), _edges(beside, stack, flat)
    lines_done, columns_done = np.zeros_like(lines), np.zeros_like(columns)
    kernel, zero = np.zeros(len(lags), x.dtype), x.dtype.type(0)
    for c in range(start, stop):
        _lag_kernel(weight[c], taps, kernel)
        read(image, c, (0, 1), zero, rows, 1, block, same)
        for n in range(0, len(x), stack):
            images = n, min(n + stack, len(x))
            count = images[1] - n
            read(x, c, images, zero, rows, 1, block, flat)
            for m in range(count):
                done[m * block : (m + 1) * block] = same[lead:]
            add_taps(done[: count * block], kernel, flat, lags)
            own = flat[lead:]
            _collect(own, count, block, above, lines)
            _collect(own, count, block, beside, columns)
            _give(lines, above, weight[c], lines_done)
            _give(columns, beside, weight[c], columns_done)
            _put(lines_done, count, block, above, done)
            _put(columns_done, count, block, beside, done)
            _add_rows(done, rows, lead, block, c, images, total)


@compiled
def _give(lines, edges, weight, done):
    """Take what windows outside write away."""
    _, _, _, size, base, count, taps, along, across = edges[2]
    stack = lines.shape[1] // size
    done[:] = 0
    for t, t2, line, line2 in edges[1]:
        for a in range(taps):
            target = done[line, (base + a) * stack :][: count * stack]
            for a2 in range(taps):
                factor = weight[t * across + a * along, t2 * across + a2 * along]
                add(target, -factor, lines[line2, (base + a2) * stack :])


@compiled
def _put(lines, images, block, edges, own):
    """Add lines to the images of a stack."""
    step, count, margin = edges[2][0], edges[2][1], edges[2][2]
    stack = lines.shape[1] // edges[2][3]
    for e in range(len(lines)):
        for n in range(images):
            line = own[n * block + edges[0][e] :]
            for i in range(count):
                line[i * step] += lines[e, (margin + i) * stack + n]


@compiled
def _add_rows(done, rows, lead, block, c, images, total):
    for n in range(images[0], images[1]):
        for i in range(len(rows)):
            add(total[n, c, i], 1, done[(n - images[0]) * block + rows[i, 2] - lead :])
