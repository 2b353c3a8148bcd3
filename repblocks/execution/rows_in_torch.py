"""The arithmetic of :mod:`repblocks.execution.rows` in torch.

Shapes: as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def statistics(
    rows: Tensor,
    product: Tensor,
    mean: Tensor,
    covariance: Tensor,
    offset: Tensor,
    inputs: int,
    factor: float,
) -> tuple[Tensor, ...]:
    """Return means, variances, both for the running ones, and which stand, ``(N, O)``.

    No variance is less than the rounding of its own terms: where the terms of ``w C w`` cancel,
    fewer digits are left than in the output of a branch.

    Args:
        rows: ``(G, B, R, D)``.
        product: With the covariance, like rows.
        mean: ``(G, D)``, less the offset.
        covariance: ``(G, D, D)``.
        offset: ``(G, D)``.
        inputs: N - B.
        factor: From a variance to an unbiased one.
    """
    variances = covariance.diagonal(dim1=1, dim2=2).clamp_min(0)
    read = rows.flatten(1, 2) @ torch.stack([mean, mean + offset], 2)
    means, averages = by_branch(read.view(*rows.shape[:3], 2)).unbind(2)
    terms = (rows.flatten(1, 2).square() @ variances.unsqueeze(2)).view(rows.shape[:3])
    spread = by_branch((product * rows).sum(3))
    least = by_branch(terms) * torch.finfo(rows.dtype).eps
    if inputs:
        of_inputs = mean, mean + offset, variances, torch.zeros_like(variances)
        own = [each.flatten().expand(inputs, -1) for each in of_inputs]
        pairs = zip((means, averages, spread, least), own, strict=True)
        means, averages, spread, least = [torch.cat(pair) for pair in pairs]
    found = torch.maximum(spread, least)
    return means, found, averages, found * factor, spread >= least


def statistics_gradient(
    rows: Tensor,
    product: Tensor,
    mean: Tensor,
    kept: Tensor,
    of_rows: Tensor,
    of_means: Tensor,
    of_spread: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows, mean and covariance; ``of_rows`` is what else arrives there."""
    branches = rows.shape[1]
    of_spread = of_spread * kept
    means, spread = [by_group(each[:branches], rows) for each in (of_means, of_spread)]
    weighted = spread * rows
    of_rows = of_rows + means * mean[:, None, None] + 2 * spread * product
    read = rows.flatten(1, 2).transpose(1, 2)
    of_mean = (read @ means.flatten(1, 2)).squeeze(2)
    of_covariance = read @ weighted.flatten(1, 2)
    if branches < len(of_means):
        of_mean += of_means[branches:].sum(0).view_as(mean)
        of_covariance.diagonal(dim1=1, dim2=2).add_(of_spread[branches:].sum(0).view_as(mean))
    return of_rows, of_mean, of_covariance


def merged(
    rows: Tensor,
    means: Tensor,
    spread: Tensor,
    factors: Sequence[Tensor],
    biases: Sequence[Tensor],
    epsilon: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the kernel ``(G, R, D)``, the shift ``(O,)``, and scales and inverses ``(N, O)``."""
    branches = rows.shape[1]
    scales, inverses = scales_of(spread, factors, epsilon)
    kernel = (by_group(scales[:branches], rows) * rows).sum(1)
    if branches < len(means):
        kernel.diagonal(dim1=1, dim2=2).add_(scales[branches:].sum(0).view(kernel.shape[:2]))
    shift = (scales * means).sum(0).neg_()
    if biases:
        shift += torch.stack(list(biases)).sum(0)
    return kernel, shift, scales, inverses


def merged_gradient(
    rows: Tensor,
    means: Tensor,
    scales: Tensor,
    inverses: Tensor,
    of_kernel: Tensor,
    of_shift: Tensor,
    biases: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Sequence[Tensor]]:
    """Return the gradients of rows, means, variances and factors, ``(N, O)``, and of biases."""
    branches = rows.shape[1]
    of_kernel = of_kernel.unsqueeze(1)
    of_scales = by_branch((of_kernel * rows).sum(3))
    if branches < len(means):
        of_inputs = of_kernel.diagonal(dim1=2, dim2=3).flatten().expand(len(means) - branches, -1)
        of_scales = torch.cat([of_scales, of_inputs])
    of_scales = of_scales - of_shift * means
    of_factors = of_scales * inverses
    of_rows = by_group(scales[:branches], rows) * of_kernel
    of_means, of_spread = -of_shift * scales, -0.5 * of_factors * scales * inverses
    of_biases = of_shift.repeat(biases, 1).unbind() if biases else ()  # each may be kept
    return of_rows, of_means, of_spread, of_factors, of_biases


def scales_of(
    spread: Tensor, factors: Sequence[Tensor], epsilon: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return what variances scale by, with factors and without, ``(N, O)``."""
    inverses = (spread + epsilon).rsqrt()
    return (torch.stack(list(factors)) * inverses if factors else inverses), inverses


def vectors(rows: Tensor, count: int, inputs: int) -> tuple[Tensor, ...]:
    """Return so many tensors ``(N, O)``."""
    groups, branches, outputs, _ = rows.shape
    return rows.new_empty(count, branches + inputs, groups * outputs).unbind()


def by_branch(values: Tensor) -> Tensor:
    """Turn ``(G, B, R, ...)`` into ``(B, O, ...)``."""
    return values.transpose(0, 1).flatten(1, 2)


def by_group(values: Tensor, rows: Tensor) -> Tensor:
    """Turn ``(B, O)`` into ``(G, B, R, 1)``."""
    groups, branches, outputs = rows.shape[:3]
    return values.view(branches, groups, outputs, 1).transpose(0, 1)
