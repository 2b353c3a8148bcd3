"""Measure the inputs of BatchNorms, and restate a BatchNorm in other statistics.

A BatchNorm whose running statistics are those of its batches computes in training mode what it
computes in evaluation mode, up to the noise of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.errors import NotFoldable
from repblocks.expansion.batches import fitted
from repblocks.expansion.modes import evaluating


@dataclass
class Moments:
    """Sums over batches of the mean and the variance of each channel.

    Args:
        count: Batches seen.
        mean: ``(C,)``, the sum of the means.
        var: ``(C,)``, the sum of the biased variances, with which training mode normalises.
    """

    count: int = 0
    mean: Tensor | float = 0.0
    var: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in a batch ``(N, C, *spatial)``."""
        axes = [0, *range(2, x.ndim)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(wide, axes, correction=0)
        self.count, self.mean, self.var = self.count + 1, self.mean + mean, self.var + var


def calibrate_(model: nn.Module, norms: Iterable[BatchNorm], inputs: Iterable[Tensor]) -> None:
    """Give BatchNorms the statistics of their inputs; what they compute stays the same.

    All are measured in the same passes: in evaluation mode, which the new statistics do not change.

    Args:
        model: Runs the inputs in evaluation mode; keeps its modes.
        norms: Of the model, with weight and bias.
        inputs: Batches of the model.
    """
    moments = {norm: Moments() for norm in norms}

    def watch(norm: BatchNorm) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: moments[norm].add(args[0])

    hooks = [norm.register_forward_pre_hook(watch(norm)) for norm in moments]
    try:
        with torch.no_grad(), evaluating(model):
            for x in inputs:
                model(fitted(model, x))
    finally:
        for hook in hooks:
            hook.remove()
    for norm, found in moments.items():
        if isinstance(found.mean, Tensor) and isinstance(found.var, Tensor):
            restate_(norm, found.mean / found.count, found.var / found.count)


def restate_(norm: BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Set running statistics; weight and bias change so that evaluation mode stays the same.

    Args:
        norm: With weight and bias.
        mean: ``(C,)``.
        var: ``(C,)``.

    Raises:
        NotFoldable: if the BatchNorm has no running statistics.
    """
    # These few numbers are computed on the CPU, as some devices have no float64.
    like = torch.empty(0, dtype=torch.float64)
    with torch.no_grad():
        own_mean, own_var = running_statistics(norm)
        scale = norm.weight.to(like) / (own_var.to(like) + norm.eps).sqrt()
        shift = norm.bias.to(like) - scale * own_mean.to(like)
        own_mean.copy_(mean)
        own_var.copy_(var)
        # From the rounded statistics, so that only weight and bias are rounded.
        norm.weight.copy_(scale * (own_var.to(like) + norm.eps).sqrt())
        norm.bias.copy_(shift + scale * own_mean.to(like))


def running_statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return running mean and variance, ``(C,)``.

    Raises:
        NotFoldable: if there are none.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise NotFoldable("A BatchNorm without running statistics uses those of each batch.")
    return norm.running_mean, norm.running_var
