"""A map on patches of a fixed size as a map of their values, one after the other (paradigm 20).

On a patch of P positions a convolution is a matrix: column p of it is what the convolution makes of
a patch that is 1 at p and 0 elsewhere. So it adds to a fully connected layer on the same patch.

Source:
    Ding et al., RepMLP, 2021, section 3.3, https://arxiv.org/abs/2105.01883
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from repblocks.algebra.affine import AffineMap, Lazy, evaluated_weight
from repblocks.algebra.kernel import ConvKernel


def on_patches(value: AffineMap, size: Sequence[int], like: Tensor | None = None) -> AffineMap:
    """Return the map from the flattened values of a patch to those of its result.

    Args:
        value: A map of C to O channels.
        size: The positions of a patch on each axis, P in all.
        like: A tensor of the dtype and device to compute in.

    Returns:
        A map of C * P to O * Q channels, where the positions of a channel stand together; it has no
        spatial axes. Q is P for a map that keeps the size.
    """
    positions = prod(size)
    if not value.axes:
        return _spread(value, positions)
    weight = evaluated_weight(value, like)
    matrices = _matrices(value, weight, size)
    results = matrices.shape[1]
    index = value.index.unsqueeze(2) * positions + torch.arange(positions)
    bias = value.bias
    return AffineMap(
        value.in_channels * positions,
        index.flatten(1).repeat_interleave(results, 0),
        Lazy(lambda: matrices.flatten(0, 1).flatten(1)),
        None if bias is None else Lazy(lambda: bias().repeat_interleave(results, 0)),
    )


def _matrices(value: AffineMap, weight: Tensor, size: Sequence[int]) -> Tensor:
    """Return what each kernel does on a patch, ``(O, Q, M, P)``."""
    rows, columns = value.index.shape
    kernel = ConvKernel(
        weight.reshape(rows * columns, 1, *value.sizes),
        None,
        tuple(axis.stride for axis in value.axes),
        tuple((axis.low, axis.high) for axis in value.axes),
        tuple(axis.dilation for axis in value.axes),
        padding_mode=value.padding_mode,
    )
    ones = torch.eye(prod(size), dtype=weight.dtype, device=weight.device)
    results = kernel(ones.view(-1, 1, *size)).flatten(2)
    return results.view(len(ones), rows, columns, -1).permute(1, 3, 2, 0)


def _spread(value: AffineMap, positions: int) -> AffineMap:
    """Return a map of channels alone, repeated for each position."""
    weight, bias = value.weight, value.bias
    index = value.index.unsqueeze(1) * positions + torch.arange(positions).view(-1, 1)
    return replace(
        value,
        in_channels=value.in_channels * positions,
        index=index.flatten(0, 1),
        weight=None if weight is None else Lazy(lambda: weight().repeat_interleave(positions, 0)),
        bias=None if bias is None else Lazy(lambda: bias().repeat_interleave(positions, 0)),
    )
