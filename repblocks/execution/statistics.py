"""From the moments of what is read to the statistics, scale and shift of each branch.

Shapes: G groups, D numbers that a group reads, R rows (output channels) of a group, B branches, O
output channels of a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.errors import ConfigurationError
from repblocks.execution.once import once
from repblocks.execution.synchronising import joint, process_group


def variances(weight: Tensor, covariance: Tensor) -> Tensor:
    """Return the variance ``(G, R)`` of each row of ``weight (G, R, D)``."""
    result: Tensor = _Variances.apply(weight, covariance)
    return result


def resolved(spread: Tensor, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """Return variances ``(G, R)`` of which none is less than the rounding of its own terms.

    Where the terms of ``w C w`` cancel, fewer digits are left than in the output of a branch: none
    where the result is as small as the precision times the terms. It may have any sign then.

    Args:
        spread: The variances.
        parts: Weights ``(G, R, D)``, and the variances ``(G, D)`` or ``(D,)`` of what they weigh.
    """
    with torch.no_grad():
        own = [weight.square() @ each.clamp_min(0).unsqueeze(-1) for weight, each in parts]
        least = torch.finfo(spread.dtype).eps * reduce(torch.add, own).squeeze(2)
    return spread.clamp_min(least)


class _Variances(Function):
    """``w C w`` for each row ``w``; the product that its gradient needs again is kept."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, covariance: Tensor) -> Tensor:
        product = weight @ covariance
        ctx.save_for_backward(weight, product)
        return (product * weight).sum(2)

    @staticmethod
    @once
    def backward(ctx: Any, saved: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, Tensor]:
        del ctx
        weight, product = saved
        scaled = gradient.unsqueeze(2)
        return 2 * scaled * product, weight.transpose(1, 2) @ (scaled * weight)


def normalise(
    norm: BatchNorm, means: Tensor, spread: Tensor, offsets: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Update running statistics, and return the scales and the shift of a branch, ``(O,)``.

    Args:
        norm: Of the branch.
        means: ``(1, O)``, of this batch, less the offsets.
        spread: Variances ``(1, O)``, biased.
        offsets: ``(1, O)``, what the means are counted from.
        count: Values that each was taken over.

    Raises:
        ConfigurationError: for a single value, which has no variance.
    """
    group = process_group([norm])
    if group is not None:
        means, spread, offsets, count = joint(means, spread, offsets, count, group)
    check_count(count)
    with torch.no_grad():
        update_running([norm], means + offsets, spread * (count / (count - 1)))
    scales = (spread.squeeze(0) + norm.eps).rsqrt()
    if norm.weight is not None:
        scales = norm.weight * scales
    shift = -scales * means.squeeze(0)
    return scales, shift if norm.bias is None else shift + norm.bias


def epsilons(norms: Sequence[BatchNorm], like: Tensor) -> Tensor | float:
    """Return what keeps each variance from zero, ``(B, 1)`` or the same for all."""
    found = [norm.eps for norm in norms]
    # A tensor from numbers makes a GPU wait.
    return found[0] if len({*found}) == 1 else like.new_tensor(found).unsqueeze(1)


def check_count(count: int) -> int:
    """Return how many values of each channel there are.

    Raises:
        ConfigurationError: for a single value, which has no variance.
    """
    if count < 2:
        raise ConfigurationError(
            "A BatchNorm in training mode needs more than one value of each channel, got one; use "
            "more images, larger ones, or evaluation mode."
        )
    return count


def update_running(norms: Sequence[BatchNorm], means: Tensor, spread: Tensor) -> None:
    """Move the running statistics of each norm towards those of a batch, unbiased, ``(B, O)``."""
    every: list[Any] = list(norms)
    for momentum in {norm.momentum for norm in every}:
        own = [number for number, norm in enumerate(norms) if norm.momentum == momentum]
        running = [every[n].running_mean for n in own] + [every[n].running_var for n in own]
        found = [means[n] for n in own] + [spread[n] for n in own]
        found = [new.to(old) for new, old in zip(found, running, strict=True)]
        torch._foreach_lerp_(running, found, momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm in every], 1)
