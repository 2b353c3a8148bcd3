"""From the moments of what is read to one kernel, as two steps of autograd.

The first gives the statistics of each branch, the second normalises all branches by them and adds
them. Between the two, processes may share statistics. Both compute their gradients themselves: on
numbers as few as these, what counts is how many steps there are, on a GPU above all.

Shapes: G groups, D numbers that a group reads, R output channels of a group, O = GR; B branches
with a kernel, which stand first, and others that are the input itself, N in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.execution import rows_in_torch, rows_on_cpu, rows_on_gpu
from repblocks.execution.once import once
from repblocks.execution.statistics import check_count, epsilons, update_running
from repblocks.execution.synchronising import joint, process_group


def merge_rows(
    norms: Sequence[BatchNorm],
    weights: Sequence[Tensor],
    moments: tuple[Tensor, Tensor],
    offset: Tensor,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Update running statistics, and return kernel ``(G, R, D)`` and shift ``(O,)`` of a sum.

    Args:
        norms: N.
        weights: B, ``(O, D)`` or with taps.
        moments: Mean ``(G, D)`` of what is read, less the offset, and covariance ``(G, D, D)``.
        offset: ``(G, D)``.
        count: Values that the moments were taken over.

    Raises:
        ConfigurationError: for a single value, which has no variance.
    """
    inputs, factor = len(norms) - len(weights), count / max(count - 1, 1)
    found = _Statistics.apply((inputs, factor), *moments, offset, *weights)
    rows, means, spread, averages, unbiased = found
    group = process_group(norms)
    if group is not None:
        offsets = _offsets(rows, offset, inputs)
        means, spread, offsets, count = joint(means, spread, offsets, count, group)
        averages, unbiased = means + offsets, spread * (count / max(count - 1, 1))
    check_count(count)
    with torch.no_grad():
        update_running(norms, averages, unbiased)
    factors = [norm.weight for norm in norms if norm.weight is not None]
    biases = [norm.bias for norm in norms if norm.bias is not None]
    given = rows, means, spread, epsilons(norms, means), len(factors)
    result: tuple[Tensor, Tensor] = _Sum.apply(*given, *factors, *biases)
    return result


def _offsets(rows: Tensor, offset: Tensor, inputs: int) -> Tensor:
    """Return what the means are counted from, ``(N, O)``, differentiably."""
    found = (rows @ offset[:, None, :, None]).squeeze(3).transpose(0, 1).flatten(1)
    return torch.cat([found, offset.flatten().expand(inputs, -1)]) if inputs else found


def _kernels(rows: Tensor, arrived: Tensor, epsilon: Tensor | float = 0.0) -> ModuleType:
    """Return who does the arithmetic on rows and what has arrived, forward or backward."""
    if rows_on_gpu.serves(rows, epsilon):
        return rows_on_gpu
    return rows_on_cpu if rows_on_cpu.serves(rows, arrived) else rows_in_torch


class _Statistics(Function):
    """Rows ``(G, B, R, D)``, and means less offsets and variances of branches, ``(N, O)``.

    Means and unbiased variances for the running ones come last. The rows are passed on, so that the
    gradient of the sum arrives here and is added to in the same pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        settings: tuple[int, float],
        mean: Tensor,
        covariance: Tensor,
        offset: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        groups, depth = mean.shape
        rows = torch.stack([weight.reshape(groups, -1, depth) for weight in weights], 1)
        product = (rows.flatten(1, 2) @ covariance).view_as(rows)
        given = rows, product, mean, covariance, offset, *settings
        *found, kept = _kernels(rows, mean).statistics(*given)
        ctx.shapes = [(weight.shape, weight.stride()) for weight in weights]
        ctx.save_for_backward(rows, product, mean, kept)
        ctx.mark_non_differentiable(*found[2:])
        ctx.set_materialize_grads(False)
        return rows, *found

    @staticmethod
    @once
    def backward(
        ctx: Any,
        saved: tuple[Tensor, ...],
        of_rows: Tensor,
        of_means: Tensor,
        of_spread: Tensor,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        kernels = _kernels(saved[0], of_rows)
        found = kernels.statistics_gradient(*saved, of_rows, of_means, of_spread)
        of_rows, of_mean, of_covariance = found
        parts = zip(of_rows.unbind(1), ctx.shapes, strict=True)
        of_weights = [_like(own, *shape) for own, shape in parts]
        return None, of_mean, of_covariance, None, *of_weights


def _like(own: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """Return the gradient of a weight with its strides, which a parameter keeps as it is."""
    own = own.reshape(shape)
    is_alike = _steps(shape, own.stride()) == _steps(shape, stride)
    return own.as_strided(shape, stride) if is_alike else own


def _steps(shape: torch.Size, stride: tuple[int, ...]) -> list[int]:
    """Return the strides that count: those of axes with more than one place."""
    return [step for size, step in zip(shape, stride, strict=True) if size > 1]


class _Sum(Function):
    """Kernel ``(G, R, D)`` and shift ``(O,)`` of the sum of the normalised branches."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        means: Tensor,
        spread: Tensor,
        epsilon: Tensor | float,
        factors: int,
        *affine: Tensor,
    ) -> tuple[Tensor, Tensor]:
        given = affine[:factors], affine[factors:], epsilon
        kernels = _kernels(rows, means, epsilon)
        kernel, shift, scales, inverses = kernels.merged(rows, means, spread, *given)
        ctx.factors, ctx.biases = factors, len(affine) - factors
        ctx.save_for_backward(rows, means, spread, scales, inverses, *affine[:factors])
        return kernel, shift

    @staticmethod
    @once
    def backward(
        ctx: Any, saved: tuple[Tensor, ...], of_kernel: Tensor, of_shift: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, means, _, scales, inverses, *_ = saved
        given = rows, means, scales, inverses, of_kernel, of_shift, ctx.biases
        kernels = _kernels(rows, of_kernel)
        of_rows, of_means, of_spread, of_factors, of_biases = kernels.merged_gradient(*given)
        of_factors = of_factors.unbind() if ctx.factors else ()
        return of_rows, of_means, of_spread, None, None, *of_factors, *of_biases
