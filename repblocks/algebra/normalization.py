"""Batch normalisation in evaluation mode, as an affine map of each channel (paradigms 1 and 8).

With ``s = gamma / sqrt(running_var + eps)`` it is ``x -> s * x + (beta - s * running_mean)``: after
a convolution it scales the kernel, alone it is a 1 x 1 depthwise convolution.

Source:
    Ioffe and Szegedy, Batch Normalization, ICML 2015, https://arxiv.org/abs/1502.03167
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.affine import AffineMap, Lazy, tensor_for
from repblocks.errors import NotFoldable

_FORWARDS = frozenset({nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward})


def is_batch_norm(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Tell whether the module computes what torch's BatchNorm computes, and nothing more.

    A subclass with a ``forward`` of its own, one that also applies an activation say, is not one.
    """
    return forward_of(module) in _FORWARDS


def forward_of(module: nn.Module) -> Any:
    """Return the ``forward`` of a module's class; a compiled one has none."""
    return getattr(type(module), "forward", None)


def is_uncalibrated(norm: BatchNorm) -> bool:
    """Tell whether a batch normalisation has values as statistics, but never updated ones."""
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or var is None or mean.is_meta or (count is not None and int(count) > 0):
        return False
    return not mean.any() and bool((var == 1).all())


def batch_norm_map(norm: BatchNorm, like: Tensor | None = None) -> AffineMap:
    """Return the map of a batch normalisation, for any number of spatial axes.

    Args:
        norm: A module for which :func:`is_batch_norm` holds, in evaluation mode.
        like: A tensor of the dtype and device to compute in; those of the statistics by default.

    Raises:
        NotFoldable: in training mode, or without running statistics.
    """
    mean, var, gamma, beta = norm.running_mean, norm.running_var, norm.weight, norm.bias
    if norm.training:
        raise NotFoldable(
            "A BatchNorm in training mode uses the statistics of each batch; call .eval() first."
        )
    if mean is None or var is None:
        raise NotFoldable("A BatchNorm without running statistics uses those of each batch.")

    def factor() -> Tensor:
        deviation = (tensor_for(var, like) + norm.eps).sqrt()
        return deviation.reciprocal() if gamma is None else tensor_for(gamma, like) / deviation

    scale = Lazy(factor)

    def shift() -> Tensor:
        moved = -scale() * tensor_for(mean, like)
        return moved if beta is None else moved + tensor_for(beta, like)

    index = torch.arange(mean.shape[0]).unsqueeze(1)
    return AffineMap(mean.shape[0], index, Lazy(lambda: scale().unsqueeze(1)), Lazy(shift))
