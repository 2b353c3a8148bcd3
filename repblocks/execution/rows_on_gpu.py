"""The arithmetic of :mod:`repblocks.execution.rows` by Triton, where its input is on a GPU.

Shapes: as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repblocks.execution import triton_kernels
from repblocks.execution.rows_in_torch import vectors

#: Numbers in a row after which the next can be read fast.
_ALIGNED = 16
#: Longer rows do not fit into the registers.
_MOST_NUMBERS = 4096


def serves(rows: Tensor, epsilon: Tensor | float = 0.0) -> bool:
    """Tell whether there are kernels for rows ``(G, B, R, D)``."""
    is_known = rows.dtype is torch.float32 and rows.shape[3] <= _MOST_NUMBERS
    is_known = is_known and not isinstance(epsilon, Tensor) and triton_kernels.suit(rows)
    return is_known and triton_kernels.loaded("triton_rows") is not None


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
    found = vectors(rows, 5, inputs)
    given = rows, product, mean, covariance.contiguous(), offset.contiguous()
    more = {"epsilon": torch.finfo(rows.dtype).eps, "factor": factor, **_strides(mean)}
    _launch("statistics", rows, inputs, *given, *found, **more)
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
    groups, branches, outputs, depth = rows.shape
    inputs = len(kept) - branches
    width = depth + (1 if depth % _ALIGNED else _ALIGNED)
    of_moments = rows.new_empty(groups, depth, width)
    weighted = rows.new_empty(groups, branches * outputs, width)
    found = torch.empty_like(rows)
    given = rows, product, mean, kept.contiguous(), of_rows.contiguous()
    arrived = of_means.contiguous(), of_spread.contiguous()
    written = found, weighted, of_moments
    more = {"width": width, **_strides(mean)}
    _launch("statistics_gradient", rows, inputs, *given, *arrived, *written, **more)
    read = rows.flatten(1, 2).transpose(1, 2)
    torch.baddbmm(of_moments, read, weighted, beta=float(inputs > 0), out=of_moments)
    return found, of_moments[:, :, depth], of_moments[:, :, :depth]


def merged(
    rows: Tensor,
    means: Tensor,
    spread: Tensor,
    factors: Sequence[Tensor],
    biases: Sequence[Tensor],
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the kernel ``(G, R, D)``, the shift ``(O,)``, and scales and inverses ``(N, O)``."""
    groups, branches, outputs, depth = rows.shape
    inputs = len(means) - branches
    kernel, shift = rows.new_empty(groups, outputs, depth), rows.new_empty(groups * outputs)
    scales, inverses = vectors(rows, 2, inputs)
    affine = [tuple(each.contiguous() for each in some) for some in (factors, biases)]
    given = rows, means.contiguous(), spread.contiguous(), *affine
    found = kernel, shift, scales, inverses
    _launch("merged", rows, inputs, *given, *found, epsilon=epsilon)
    return found


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
    inputs = len(means) - rows.shape[1]
    of_rows, of_biases = torch.empty_like(rows), rows.new_empty(biases, means.shape[1])
    found = vectors(rows, 3, inputs)
    # What torch computed, where the device was not the current one, may lie in any order.
    arrived = means, scales, inverses, of_kernel, of_shift
    given = rows, *(each.contiguous() for each in arrived)
    _launch("merged_gradient", rows, inputs, *given, of_rows, *found, of_biases, BIASES=biases)
    of_means, of_spread, of_factors = found
    return of_rows, of_means, of_spread, of_factors, of_biases.unbind()


def _strides(mean: Tensor) -> dict[str, int]:
    return dict(zip(("mean_g", "mean_d"), mean.stride(), strict=True))


def _launch(name: str, rows: Tensor, inputs: int, *given: Any, **more: Any) -> None:
    """Run a kernel, one program for each output channel."""
    groups, branches, outputs, depth = rows.shape
    kernel = getattr(triton_kernels.loaded("triton_rows"), name)
    size = {"outputs": outputs, "depth": depth}
    blocks = {"BRANCHES": branches, "INPUTS": inputs, "BLOCK_D": triton_kernels.power(depth)}
    kernel[(groups * outputs,)](*given, **size, **more, **blocks)
