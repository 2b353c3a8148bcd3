"""The arithmetic of :mod:`repblocks.execution.rows` by numba, where one thread is as good as more.

Shapes: as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repblocks.execution import compiled
from repblocks.execution.rows_in_torch import scales_of, vectors

#: Numbers of all rows, from which torch shares them among threads.
_SHARED = 2**16


def serves(rows: Tensor, arrived: Tensor) -> bool:
    """Tell whether there are kernels for rows ``(G, B, R, D)`` and what has arrived."""
    if not compiled.serves(rows, ()) or not compiled.is_plain(arrived):
        return False
    return torch.get_num_threads() == 1 or rows.numel() < _SHARED


def statistics(
    rows: Tensor,
    product: Tensor,
    mean: Tensor,
    covariance: Tensor,
    offset: Tensor,
    inputs: int,
    factor: float,
) -> tuple[Tensor, ...]:
    """Return means, variances, both for the running ones, and which stand, ``(N, O)``."""
    variances = covariance.diagonal(dim1=1, dim2=2).clamp_min(0)
    found = vectors(rows, 5, inputs)
    numbers = torch.finfo(rows.dtype).eps, factor
    compiled.run_rows("statistics", [rows, product, mean, offset, variances], numbers, found)
    return found


def statistics_gradient(
    rows: Tensor,
    product: Tensor,
    mean: Tensor,
    kept: Tensor,
    of_rows: Tensor,
    of_means: Tensor,
    of_spread: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows, mean and covariance."""
    found, weighted = torch.empty_like(rows), torch.empty_like(rows)
    of_mean, diagonal = torch.zeros_like(mean), torch.zeros_like(mean)
    given = rows, product, mean, kept, of_rows, of_means, of_spread
    written = found, weighted, of_mean, diagonal
    compiled.run_rows("statistics_gradient", given, (), written)
    of_covariance = rows.flatten(1, 2).transpose(1, 2) @ weighted.flatten(1, 2)
    of_covariance.diagonal(dim1=1, dim2=2).add_(diagonal)
    return found, of_mean, of_covariance


def merged(
    rows: Tensor,
    means: Tensor,
    spread: Tensor,
    factors: Sequence[Tensor],
    biases: Sequence[Tensor],
    epsilon: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the kernel ``(G, R, D)``, the shift ``(O,)``, and scales and inverses ``(N, O)``."""
    scales, inverses = scales_of(spread, factors, epsilon)
    kernel = torch.empty_like(rows[:, 0])
    shift = torch.zeros_like(means[0])
    for bias in biases:  # perhaps of lower precision
        shift += bias
    compiled.run_rows("merged", (rows, means, scales), (), (kernel, shift))
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
    of_rows = torch.empty_like(rows)
    of_means, of_spread, of_factors = found = vectors(rows, 3, len(means) - rows.shape[1])
    given = rows, means, scales, inverses, of_kernel, of_shift
    compiled.run_rows("merged_gradient", given, (), (of_rows, *found))
    of_biases = of_shift.repeat(biases, 1).unbind() if biases else ()  # each may be kept
    return of_rows, of_means, of_spread, of_factors, of_biases
