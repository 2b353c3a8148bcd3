"""Moments of depthwise windows at stride 1, and their gradient, compiled for the CPU by numba.

An image of one channel fits the first-level cache. It is read and centred there once, and all
products are taken from it: those of the flat image, zeros around it, with itself at the distance of
two taps. Windows near the border that are no outputs are taken away.

Shapes: x ``(N, C, H, W)`` of any strides, windows of R x S taps, K = RS of them, P x Q outputs.
Results are written into the last arguments, for the channels ``start`` to ``stop - 1``.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

import numpy as np

from repblocks.execution.compiled_loops import add, compiled, dot


@compiled
def _add_five(target, f, a, shift):
    """Add five neighbouring shifts of ``a``."""
    size = len(target)
    a0, a1, a2 = a[shift : shift + size], a[shift + 1 :][:size], a[shift + 2 :][:size]
    a3, a4 = a[shift + 3 :][:size], a[shift + 4 :][:size]
    f0, f1, f2, f3, f4 = f[0], f[1], f[2], f[3], f[4]
    for i in range(size):
        target[i] += f0 * a0[i] + f1 * a1[i] + f2 * a2[i] + f3 * a3[i] + f4 * a4[i]


@compiled
def _read_flat(image, mean, lead, line, flat, columns):
    """Copy an image between zeros, and its edges ``columns (2 * (S - 1), rows)`` once more."""
    height, width = image.shape
    for i in range(height):
        row, target = image[i], flat[lead + i * line :][:width]
        for j in range(width):
            target[j] = row[j] - mean
    edge = len(columns) // 2
    for e in range(edge):
        for i in range(height):
            columns[e, i + (columns.shape[1] - height) // 2] = flat[lead + i * line + e]
            columns[edge + e, i + (columns.shape[1] - height) // 2] = flat[
                lead + i * line + width - edge + e
            ]


@compiled
def _lag_products(flat, lead, line, size, taps, gram):
    rows, columns = taps
    own = flat[lead : lead + size]
    for a in range(rows):
        for b in range(1 - columns if a else 0, columns):
            found = dot(own, flat[lead + a * line + b :][:size])
            for u in range(rows - a):
                for v in range(max(0, -b), columns - max(0, b)):
                    gram[u * columns + v, (u + a) * columns + v + b] += found


@compiled
def _row_pairs(taps, low, counts, shape):
    """List the pairs of taps of windows above and below the outputs, and the rows they read."""
    rows, columns = taps
    found = [(0, 0, 0, 0) for _ in range(0)]
    for p in range(1 - rows, counts[0] + rows - 1):
        if p < 0 or p >= counts[0]:
            for u in range(rows):
                for u2 in range(rows):
                    r, r2 = p + u - low[0], p + u2 - low[0]
                    if min(r, r2) >= 0 and max(r, r2) < shape[0]:
                        found.append((u * columns, u2 * columns, r, r2))
    return found


@compiled
def _column_pairs(taps, low, counts, shape):
    """List the pairs of taps of windows beside the outputs, and the edge columns they read."""
    _, columns = taps
    edge, width = columns - 1, shape[1]
    found = [(0, 0, 0, 0) for _ in range(0)]
    for q in range(-edge, counts[1] + edge):
        if q < 0 or q >= counts[1]:
            for v in range(columns):
                for v2 in range(columns):
                    j, j2 = q + v - low[1], q + v2 - low[1]
                    if min(j, j2) >= 0 and max(j, j2) < width:
                        first = j if q < 0 else j - width + 2 * edge
                        second = j2 if q < 0 else j2 - width + 2 * edge
                        found.append((v, v2, first, second))
    return found


@compiled
def gram(x, centre, taps, low, counts, start, stop, products, summed):
    """Add the products ``(C, K, K)`` of all pairs of taps; stride 1, the upper half alone."""
    rows, columns = taps
    images, _, height, width = x.shape
    line = width + columns - 1
    lead, size = (rows - 1) * line + columns - 1, height * line
    flat = np.zeros(lead * 2 + size, x.dtype)
    margin = rows - 1
    edges = np.zeros((2 * (columns - 1), height + 2 * margin), x.dtype)
    outer = _row_pairs(taps, low, counts, (height, width))
    beside = _column_pairs(taps, low, counts, (height, width))
    for c in range(start, stop):
        own = products[c]
        for n in range(images):
            _read_flat(x[n, c], centre[c], lead, line, flat, edges)
            for i in range(height):
                add(summed[c, i], 1, flat[lead + i * line :])
            _lag_products(flat, lead, line, size, taps, own)
            _take_rows(flat, lead, line, outer, columns, own)
            _take_columns(edges, beside, rows, counts[0], low[0], own)


@compiled
def _take_rows(flat, lead, line, pairs, columns, gram):
    for tap, tap2, r, r2 in pairs:
        for v in range(columns):
            a = flat[lead + r * line + v - columns + 1 :][:line]
            for v2 in range(columns):
                if tap2 + v2 >= tap + v:
                    gram[tap + v, tap2 + v2] -= dot(
                        a, flat[lead + r2 * line + v2 - columns + 1 :][:line]
                    )


@compiled
def _take_columns(edges, pairs, rows, count, low, gram):
    columns = len(edges) // 2 + 1
    for v, v2, j, j2 in pairs:
        for u in range(rows):
            a = edges[j, u - low + rows - 1 :][:count]
            for u2 in range(u, rows):
                if u2 * columns + v2 >= u * columns + v:
                    b = edges[j2, u2 - low + rows - 1 :][:count]
                    gram[u * columns + v, u2 * columns + v2] -= dot(a, b)


@compiled
def _lag_kernel(weight, taps, kernel):
    """Sum a weight ``(K, K)`` over the pairs of each lag, ``(2R - 1, >= 2S - 1)``."""
    rows, columns = taps
    kernel[:] = 0
    for tap in range(rows * columns):
        for tap2 in range(rows * columns):
            a = tap2 // columns - tap // columns + rows - 1
            kernel[a, tap2 % columns - tap % columns + columns - 1] += weight[tap, tap2]


@compiled
def gradient(x, weight, image, of_x, taps, low, counts, start, stop, total):
    """Write ``of_x + image +`` the weight ``(C, K, K)`` times what is read, written back."""
    rows, columns = taps
    images, _, height, width = x.shape
    line = width + columns - 1
    lead, size = (rows - 1) * line + columns - 1, height * line
    flat, done = np.zeros(lead * 2 + size + 5, x.dtype), np.zeros(lead * 2 + size, x.dtype)
    margin = rows - 1
    edges = np.zeros((2 * (columns - 1), height + 2 * margin), x.dtype)
    beside_done = np.zeros_like(edges)
    outer = _row_pairs(taps, low, counts, (height, width))
    beside = _column_pairs(taps, low, counts, (height, width))
    kernel = np.zeros((2 * rows - 1, (2 * columns + 3) // 5 * 5), x.dtype)
    zero = x[0, 0, 0, 0] * 0
    for c in range(start, stop):
        w = weight[c]
        _lag_kernel(w, taps, kernel)
        for n in range(images):
            _read_flat(x[n, c], zero, lead, line, flat, edges)
            done[:] = 0
            beside_done[:] = 0
            own = done[lead : lead + size]
            for a in range(2 * rows - 1):
                for b in range(0, kernel.shape[1], 5):
                    shift = lead + (a - rows + 1) * line + b - columns + 1
                    _add_five(own, kernel[a, b : b + 5], flat, shift)
            _give_rows(flat, lead, line, outer, columns, w, done)
            _give_columns(edges, beside, rows, counts[0], low[0], w, beside_done)
            _write(done, lead, line, beside_done, image[c], of_x[n, c], total[n, c])


@compiled
def _give_rows(flat, lead, line, pairs, columns, weight, done):
    for tap, tap2, r, r2 in pairs:
        for v in range(columns):
            a = done[lead + r * line + v - columns + 1 :][:line]
            for v2 in range(columns):
                b = flat[lead + r2 * line + v2 - columns + 1 :][:line]
                add(a, -weight[tap + v, tap2 + v2], b)


@compiled
def _give_columns(edges, pairs, rows, count, low, weight, done):
    columns = len(edges) // 2 + 1
    for v, v2, j, j2 in pairs:
        for u in range(rows):
            a = done[j, u - low + rows - 1 :][:count]
            for u2 in range(rows):
                b = edges[j2, u2 - low + rows - 1 :][:count]
                add(a, -weight[u * columns + v, u2 * columns + v2], b)


@compiled
def _write(done, lead, line, beside, image, of_x, total):
    height, width = total.shape
    edge, margin = len(beside) // 2, (beside.shape[1] - height) // 2
    for e in range(edge):
        for i in range(height):
            done[lead + i * line + e] += beside[e, i + margin]
            done[lead + i * line + width - edge + e] += beside[edge + e, i + margin]
    for i in range(height):
        own, first, second, target = done[lead + i * line :], image[i], of_x[i], total[i]
        for j in range(width):
            target[j] = own[j] + first[j] + second[j]
