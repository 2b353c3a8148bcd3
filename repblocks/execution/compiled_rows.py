"""The arithmetic of :mod:`repblocks.execution.rows`, compiled for the CPU by numba.

Shapes: rows ``(G, B, R, D)``; G groups, B branches with a kernel, R output channels of a group, D
numbers that a group reads, O = GR. Further branches are the input itself, where R = D; N branches
in all. Vectors are ``(N, O)``. Results are written into the last arguments.
"""

# ruff: noqa: ANN001, ANN201 - numba infers the types
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

from repblocks.execution.compiled_loops import compiled, dot


@compiled
def statistics(
    rows, product, mean, offset, variances, epsilon, factor, means, spread, averages, unbiased, kept
):
    """Write means, variances, both for the running ones, and which stand."""
    groups, branches, outputs, depth = rows.shape
    for g in range(groups):
        for r in range(outputs):
            o = g * outputs + r
            for b in range(branches):
                row = rows[g, b, r]
                terms = rows.dtype.type(0)
                for d in range(depth):
                    terms += row[d] * row[d] * variances[g, d]
                own, least = dot(product[g, b, r], row), terms * epsilon
                means[b, o] = dot(row, mean[g])
                averages[b, o] = means[b, o] + dot(row, offset[g])
                spread[b, o], kept[b, o] = max(own, least), own >= least
            for b in range(branches, len(means)):
                means[b, o], averages[b, o] = mean[g, r], mean[g, r] + offset[g, r]
                spread[b, o], kept[b, o] = variances[g, r], True
            for b in range(len(means)):
                unbiased[b, o] = spread[b, o] * factor


@compiled
def statistics_gradient(
    rows, product, mean, kept, arrived, of_means, of_spread, of_rows, weighted, of_mean, diagonal
):
    """Write the gradients of rows and mean, rows times those of variances, and the rest of these.

    The gradient of the covariance is the product of rows and weighted rows, and the rest on its
    diagonal.
    """
    groups, branches, outputs, depth = rows.shape
    zero = rows.dtype.type(0)
    for g in range(groups):
        for r in range(outputs):
            o = g * outputs + r
            for b in range(branches):
                own, wide = of_means[b, o], of_spread[b, o] if kept[b, o] else zero
                twice = wide + wide
                row, found, scaled = rows[g, b, r], of_rows[g, b, r], weighted[g, b, r]
                other, given, average = product[g, b, r], arrived[g, b, r], mean[g]
                for d in range(depth):
                    found[d] = given[d] + own * average[d] + twice * other[d]
                    scaled[d] = wide * row[d]
                    of_mean[g, d] += own * row[d]
            for b in range(branches, len(of_means)):
                of_mean[g, r] += of_means[b, o]
                diagonal[g, r] += of_spread[b, o] if kept[b, o] else zero


@compiled
def merged(rows, means, scales, kernel, shift):
    """Write the sum of the scaled rows, and take the scaled means from the shift."""
    groups, branches, outputs, depth = rows.shape
    for g in range(groups):
        for r in range(outputs):
            o, total = g * outputs + r, kernel[g, r]
            for b in range(len(means)):
                shift[o] -= scales[b, o] * means[b, o]
            total[:] = 0
            for b in range(branches):
                row, scale = rows[g, b, r], scales[b, o]
                for d in range(depth):
                    total[d] += scale * row[d]
            for b in range(branches, len(means)):
                total[r] += scales[b, o]


@compiled
def merged_gradient(
    rows, means, scales, inverses, of_kernel, of_shift, of_rows, of_means, of_spread, of_factors
):
    """Write the gradients of rows, means, variances and factors."""
    groups, branches, outputs, depth = rows.shape
    half = rows.dtype.type(0.5)
    for g in range(groups):
        for r in range(outputs):
            o, given = g * outputs + r, of_kernel[g, r]
            for b in range(len(means)):
                scale, shift = scales[b, o], of_shift[o]
                of_scale = dot(given, rows[g, b, r]) if b < branches else given[r]
                factor = (of_scale - shift * means[b, o]) * inverses[b, o]
                of_factors[b, o], of_means[b, o] = factor, -shift * scale
                of_spread[b, o] = -half * factor * scale * inverses[b, o]
                if b < branches:
                    found = of_rows[g, b, r]
                    for d in range(depth):
                        found[d] = scale * given[d]
