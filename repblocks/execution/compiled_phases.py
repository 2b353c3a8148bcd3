"""Moments of depthwise windows at any stride, and their gradient, compiled for the CPU by numba.

As :mod:`repblocks.execution.compiled_lags`. At stride s the image falls into s² phases, in each of
which a tap is the flat phase from one place on; all pairs of taps are multiplied.

Shapes: x ``(N, C, H, W)`` of any strides, windows of R x S taps, K = RS of them, P x Q outputs.
Results are written into the last arguments, for the channels ``start`` to ``stop - 1``.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

import numpy as np

from repblocks.execution.compiled_loops import add, compiled, dot


@compiled
def _phase_rows(shape, base, steps, size):
    """List what each part of a row is in its phase: row, column, phase, first place, count."""
    found = [(0, 0, 0, 0, 0) for _ in range(0)]
    for r in range(shape[0]):
        i = r // steps[0] - base[0]
        for phase in range(steps[1]):
            first = max(0, -base[1])
            count = min(size[1] - first, (shape[1] - 1 - phase) // steps[1] - base[1] - first + 1)
            if 0 <= i < size[0] and count > 0:
                column = (first + base[1]) * steps[1] + phase
                number = r % steps[0] * steps[1] + phase
                found.append((r, column, number, i * size[1] + first, count))
    return found


@compiled
def _read_phases(image, mean, step, parts, phases):
    for r, column, phase, first, count in parts:
        row, target = image[r, column:], phases[phase, first : first + count]
        if step == 2:
            for q in range(count):
                target[q] = row[2 * q] - mean
        else:
            for q in range(count):
                target[q] = row[step * q] - mean


@compiled
def _blank(values, line, counts):
    """Set what is beside the outputs to zero."""
    for p in range(counts[0]):
        for q in range(p * line + counts[1], (p + 1) * line):
            values[q] = 0


@compiled
def gram(x, centre, taps, base, steps, size, counts, start, stop, products, summed):
    """Add the products ``(C, K, K)`` of all pairs, the upper half alone.

    The taps ``(K, 2)`` are phases and places in them.
    """
    phases = np.zeros((steps[0] * steps[1], size[0] * size[1] + size[1]), x.dtype)
    parts = _phase_rows(x.shape[2:], base, steps, size)
    long = counts[0] * size[1]
    blanked = np.zeros((len(taps), long), x.dtype)
    for c in range(start, stop):
        for n in range(len(x)):
            _read_phases(x[n, c], centre[c], steps[1], parts, phases)
            for i in range(x.shape[2]):
                row, target = x[n, c, i], summed[c, i]
                for j in range(len(target)):
                    target[j] += row[j] - centre[c]
            for k in range(len(taps)):
                blanked[k] = phases[taps[k, 0], taps[k, 1] : taps[k, 1] + long]
                _blank(blanked[k], size[1], counts)
            for k in range(len(taps)):
                for k2 in range(k, len(taps)):
                    products[c, k, k2] += dot(blanked[k], blanked[k2])


@compiled
def gradient(x, weight, image, of_x, taps, base, steps, size, counts, start, stop, total):
    """Write ``of_x + image +`` the weight ``(C, K, K)`` times what is read, written back."""
    phases = np.zeros((steps[0] * steps[1], size[0] * size[1] + size[1]), x.dtype)
    done = np.zeros_like(phases)
    parts = _phase_rows(x.shape[2:], base, steps, size)
    long = counts[0] * size[1]
    gathered = np.zeros(((len(taps) + 4) // 5 * 5, long), x.dtype)
    mixed, factors = np.zeros(long, x.dtype), np.zeros(len(gathered), x.dtype)
    zero = x[0, 0, 0, 0] * 0
    for c in range(start, stop):
        for n in range(len(x)):
            _read_phases(x[n, c], zero, steps[1], parts, phases)
            for k in range(len(taps)):
                gathered[k] = phases[taps[k, 0], taps[k, 1] : taps[k, 1] + long]
            done[:] = 0
            for k in range(len(taps)):
                factors[: len(taps)] = weight[c, k]
                mixed[:] = 0
                for k2 in range(0, len(gathered), 5):
                    _add_rows(mixed, factors[k2 : k2 + 5], gathered[k2 : k2 + 5])
                _blank(mixed, size[1], counts)
                add(done[taps[k, 0], taps[k, 1] : taps[k, 1] + long], 1, mixed)
            _write_phases(done, steps[1], parts, image[c], of_x[n, c], total[n, c])


@compiled
def _add_rows(target, f, rows):
    """Add five rows."""
    a0, a1, a2, a3, a4 = rows[0], rows[1], rows[2], rows[3], rows[4]
    f0, f1, f2, f3, f4 = f[0], f[1], f[2], f[3], f[4]
    for i in range(len(target)):
        target[i] += f0 * a0[i] + f1 * a1[i] + f2 * a2[i] + f3 * a3[i] + f4 * a4[i]


@compiled
def _write_phases(done, step, parts, image, of_x, total):
    for i in range(total.shape[0]):
        first, second, target = image[i], of_x[i], total[i]
        for j in range(len(target)):
            target[j] = first[j] + second[j]
    for r, column, phase, first, count in parts:
        row, own = total[r, column:], done[phase, first : first + count]
        for q in range(count):
            row[step * q] += own[q]
