"""The arithmetic of :mod:`repblocks.execution.rows`, as Triton kernels for a GPU.

A program takes one output channel, all branches of it. Arithmetic is in float32.

Shapes: rows ``(G, B, R, D)``; G groups, B branches with a kernel, R output channels of a group, D
numbers that a group reads, O = GR; I further branches are the input itself, where R = D.
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803 - Triton knows types, and writes its constants large
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _channel(outputs, depth, BLOCK_D: tl.constexpr):
    """Return the output channel of a program, its group, its place there, and how many there are.

    Then the numbers that it reads, and which of them there are.
    """
    o = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    return o, o // outputs, o % outputs, tl.num_programs(0), d, d < depth


@triton.jit
def _place(b, g, r, outputs, depth, BRANCHES: tl.constexpr):
    """Return where the row of a branch begins."""
    return ((g * BRANCHES + b) * outputs + r).to(tl.int64) * depth


@triton.jit
def statistics(
    rows,
    product,
    mean,
    covariance,
    offset,
    means,
    spread,
    averages,
    unbiased,
    kept,
    outputs,
    depth,
    mean_g,
    mean_d,
    epsilon,
    factor,
    BRANCHES: tl.constexpr,
    INPUTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write means, variances, both for the running ones, and which stand, each ``(B + I, O)``."""
    o, g, r, total, d, exists = _channel(outputs, depth, BLOCK_D)
    own = g * depth + d
    average = tl.load(mean + g * mean_g + d * mean_d, mask=exists, other=0.0)
    centre = tl.load(offset + own, mask=exists, other=0.0)
    diagonal = covariance + own.to(tl.int64) * depth + d
    variance = tl.maximum(tl.load(diagonal, mask=exists, other=0.0), 0.0)
    for b in tl.static_range(BRANCHES):
        place = _place(b, g, r, outputs, depth, BRANCHES) + d
        row = tl.load(rows + place, mask=exists, other=0.0)
        found = tl.sum(row * tl.load(product + place, mask=exists, other=0.0), 0)
        least = epsilon * tl.sum(row * row * variance, 0)
        is_kept = found >= least
        found = tl.where(found < least, least, found)  # not a number stays that
        n = b * total + o
        tl.store(means + n, tl.sum(row * average, 0))
        tl.store(averages + n, tl.sum(row * (average + centre), 0))
        tl.store(spread + n, found)
        tl.store(unbiased + n, factor * found)
        tl.store(kept + n, tl.where(is_kept, 1.0, 0.0))
    for b in tl.static_range(INPUTS):
        n = (BRANCHES + b) * total + o
        found = tl.load(covariance + (g * depth + r).to(tl.int64) * depth + r)
        is_kept = found >= 0.0
        found = tl.where(found < 0.0, 0.0, found)
        own_mean = tl.load(mean + g * mean_g + r * mean_d)
        tl.store(means + n, own_mean)
        tl.store(averages + n, own_mean + tl.load(offset + o))
        tl.store(spread + n, found)
        tl.store(unbiased + n, factor * found)
        tl.store(kept + n, tl.where(is_kept, 1.0, 0.0))


@triton.jit
def statistics_gradient(
    rows,
    product,
    mean,
    kept,
    of_rows,
    of_means,
    of_spread,
    found,
    weighted,
    of_moments,
    outputs,
    depth,
    width,
    mean_g,
    mean_d,
    BRANCHES: tl.constexpr,
    INPUTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradient of the rows, to which ``of_rows`` is added.

    ``weighted (G, B, R, width)`` are the rows times the gradients of their variances, and the
    gradients of their means: the rows times that are the gradients of covariance and mean, beside
    what ``of_moments (G, D, width)`` holds already, which is that of the inputs. Of the width, the
    first D + 1 numbers count.
    """
    o, g, r, total, d, exists = _channel(outputs, depth, BLOCK_D)
    average = tl.load(mean + g * mean_g + d * mean_d, mask=exists, other=0.0)
    for b in tl.static_range(BRANCHES):
        place = _place(b, g, r, outputs, depth, BRANCHES)
        row = tl.load(rows + place + d, mask=exists, other=0.0)
        of_mean = tl.load(of_means + b * total + o)
        of_variance = tl.load(of_spread + b * total + o) * tl.load(kept + b * total + o)
        own = tl.load(of_rows + place + d, mask=exists, other=0.0) + of_mean * average
        own += 2 * of_variance * tl.load(product + place + d, mask=exists, other=0.0)
        tl.store(found + place + d, own, mask=exists)
        wide = _place(b, g, r, outputs, width, BRANCHES)
        tl.store(weighted + wide + d, of_variance * row, mask=exists)
        tl.store(weighted + wide + depth, of_mean)
    if INPUTS > 0:
        of_mean = 0.0
        of_variance = 0.0
        for b in tl.static_range(INPUTS):
            n = (BRANCHES + b) * total + o
            of_mean += tl.load(of_means + n)
            of_variance += tl.load(of_spread + n) * tl.load(kept + n)
        line = of_moments + (g * depth + r).to(tl.int64) * width
        tl.store(line + d, tl.where(d == r, of_variance, 0.0), mask=exists)
        tl.store(line + depth, of_mean)


@triton.jit
def merged(
    rows,
    means,
    spread,
    factors,
    biases,
    kernel,
    shift,
    scales,
    inverses,
    outputs,
    depth,
    epsilon,
    BRANCHES: tl.constexpr,
    INPUTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the kernel ``(G, R, D)`` and the shift ``(O,)`` of the sum of all branches.

    ``factors`` and ``biases`` are those of the norms, empty where these have none. Scales and
    inverses are ``(B + I, O)``.
    """
    o, g, r, total, d, exists = _channel(outputs, depth, BLOCK_D)
    own = tl.zeros((BLOCK_D,), tl.float32)
    added = 0.0
    for b in tl.static_range(BRANCHES + INPUTS):
        inverse = 1.0 / tl.sqrt(tl.load(spread + b * total + o) + epsilon)
        scale = inverse
        if len(factors) > 0:
            scale *= tl.load(factors[b] + o).to(tl.float32)
        if b < BRANCHES:
            place = _place(b, g, r, outputs, depth, BRANCHES) + d
            own += scale * tl.load(rows + place, mask=exists, other=0.0)
        else:
            own += tl.where(d == r, scale, 0.0)
        added -= scale * tl.load(means + b * total + o)
        tl.store(inverses + b * total + o, inverse)
        tl.store(scales + b * total + o, scale)
    for b in tl.static_range(len(biases)):
        added += tl.load(biases[b] + o).to(tl.float32)
    tl.store(kernel + o.to(tl.int64) * depth + d, own, mask=exists)
    tl.store(shift + o, added)


@triton.jit
def merged_gradient(
    rows,
    means,
    scales,
    inverses,
    of_kernel,
    of_shift,
    of_rows,
    of_means,
    of_spread,
    of_factors,
    of_biases,
    outputs,
    depth,
    BRANCHES: tl.constexpr,
    INPUTS: tl.constexpr,
    BIASES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradients of all that :func:`merged` reads."""
    o, g, r, total, d, exists = _channel(outputs, depth, BLOCK_D)
    line = of_kernel + o.to(tl.int64) * depth
    arrived = tl.load(line + d, mask=exists, other=0.0)
    added = tl.load(of_shift + o)
    for b in tl.static_range(BRANCHES + INPUTS):
        n = b * total + o
        scale, inverse = tl.load(scales + n), tl.load(inverses + n)
        if b < BRANCHES:
            place = _place(b, g, r, outputs, depth, BRANCHES) + d
            of_scale = tl.sum(arrived * tl.load(rows + place, mask=exists, other=0.0), 0)
            tl.store(of_rows + place, scale * arrived, mask=exists)
        else:
            of_scale = tl.load(line + r)
        of_factor = (of_scale - added * tl.load(means + n)) * inverse
        tl.store(of_means + n, -added * scale)
        tl.store(of_spread + n, -0.5 * of_factor * scale * inverse)
        tl.store(of_factors + n, of_factor)
    for b in tl.static_range(BIASES):
        tl.store(of_biases + b * total + o, added)
