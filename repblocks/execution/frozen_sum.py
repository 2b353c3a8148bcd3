"""A sum of normalised kernels whose norms are frozen: its kernel, in one pass over the weights.

The algebra finds the same kernel, for this and for everything else, but works out the structure of
the branches each time. Here that is read once, and a step evaluates the weights alone.

Shapes: B branches, O output channels, D input channels of a group, ``*k`` taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.execution.reading import NormedConv, branches_of, common_axes, read_branch
from repblocks.execution.statistics import epsilons


@dataclass(frozen=True)
class FrozenSum:
    """The branches of a block, each a kernel, an average or the input, and its BatchNorm.

    Args:
        branches: Those with a kernel first.
        axes: Where the taps of the sum read.
        groups: Of every kernel.
    """

    branches: tuple[NormedConv, ...]
    axes: tuple[Axis, ...]
    groups: int

    @property
    def weights(self) -> list[Tensor]:
        """Of the branches that have one, each ``(O, D, *k)``."""
        convs = [branch.conv for branch in self.branches]
        return [conv.weight for conv in convs if isinstance(conv, Conv)]

    def kernel(self) -> ConvKernel:
        """Return the kernel of the sum, differentiably."""
        weights = self.weights
        scales, shift = _normalised([branch.norm for branch in self.branches], weights[0])
        places = [_Place.of(branch, self.axes) for branch in self.branches]
        sizes = [axis.size for axis in self.axes]
        return ConvKernel(
            _WeightedSum.apply(places, sizes, self.groups, scales, *weights),
            shift,
            tuple(axis.stride for axis in self.axes),
            tuple((axis.low, axis.high) for axis in self.axes),
            tuple(axis.dilation for axis in self.axes),
            self.groups,
        )


@dataclass(frozen=True)
class _Place:
    """The taps of a branch among those of the sum.

    Args:
        taps: The part of ``(..., *k)``.
        share: What each tap of an average weighs; not used for a kernel.
    """

    taps: tuple[slice | EllipsisType, ...]
    share: float

    @classmethod
    def of(cls, branch: NormedConv, axes: Sequence[Axis]) -> _Place:
        """Return the place of a branch on the axes of the sum."""
        taps: list[slice | EllipsisType] = [...]
        for own, axis in zip(branch.axes, axes, strict=True):
            start, step = (axis.low - own.low) // axis.dilation, max(own.step // axis.dilation, 1)
            taps.append(slice(start, start + (own.size - 1) * step + 1, step))
        return cls(tuple(taps), 1 / branch.taps)


class _WeightedSum(Function):
    """The sum of scaled kernels ``(O, D, *k)``, each weight being read once in each direction."""

    @staticmethod
    def forward(
        ctx: Any,
        places: Sequence[_Place],
        sizes: Sequence[int],
        groups: int,
        scales: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.places, ctx.groups = places, groups
        ctx.save_for_backward(scales, *weights)
        total = weights[0].new_zeros(*weights[0].shape[:2], *sizes)
        for place, scale, weight in zip(places, scales, weights, strict=False):
            total[place.taps].addcmul_(weight, _column(scale, weight))
        for place, scale in zip(places[len(weights) :], scales[len(weights) :], strict=True):
            own = _diagonal(total[place.taps], groups)
            own += _row(place.share * scale, own)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scales, *weights = ctx.saved_tensors
        parts = [gradient[place.taps] for place in ctx.places]
        of_weights = [
            part * _column(scale, part) if wanted else None
            for part, scale, wanted in zip(parts, scales, ctx.needs_input_grad[4:], strict=False)
        ]
        of_scales = [
            (part * weight).flatten(1).sum(1) for part, weight in zip(parts, weights, strict=False)
        ]
        for part, place in zip(parts[len(weights) :], ctx.places[len(weights) :], strict=True):
            own = _diagonal(part, ctx.groups)
            of_scales.append(place.share * own.flatten(1, -2).sum(1).flatten())
        return None, None, None, torch.stack(of_scales), *of_weights


def _column(scale: Tensor, like: Tensor) -> Tensor:
    """Return factors ``(O,)`` for ``(O, D, *k)``."""
    return scale.view(-1, *(1,) * (like.ndim - 1))


def _row(scale: Tensor, like: Tensor) -> Tensor:
    """Return factors ``(C,)`` for a diagonal ``(G, *k, D)``."""
    return scale.view(len(like), *(1,) * (like.ndim - 2), -1)


def _diagonal(kernel: Tensor, groups: int) -> Tensor:
    """View what each channel gives to itself in a kernel ``(C, D, *k)``: ``(G, *k, D)``."""
    return kernel.view(groups, -1, *kernel.shape[1:]).diagonal(dim1=1, dim2=2)


def read_frozen_sum(tree: nn.Module, ndim: int) -> FrozenSum | None:
    """Return what the branches of a block are, or None if one is something else.

    Args:
        tree: The branches of a block.
        ndim: Number of spatial axes.
    """
    read = [read_branch(branch, ndim) for branch in branches_of(tree)]
    known = [branch for branch in read if branch is not None]
    axes = common_axes(known) if len(known) == len(read) else None
    groups = [branch.conv.groups for branch in known if isinstance(branch.conv, Conv)]
    weighted = {branch.norm.weight is None for branch in known}
    if axes is None or not groups or len(weighted) > 1:
        return None
    known.sort(key=lambda branch: not isinstance(branch.conv, Conv))
    return FrozenSum(tuple(known), axes, groups[0])


def _normalised(norms: Sequence[Any], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales ``(B, O)`` of frozen norms, and the sum ``(O,)`` of their shifts."""
    with torch.no_grad():
        variances = torch.stack([norm.running_var for norm in norms]).to(like)
        means = torch.stack([norm.running_mean for norm in norms]).to(like)
        scales = (variances + epsilons(norms, variances)).rsqrt()
    if norms[0].weight is not None:
        scales = torch.stack([norm.weight for norm in norms]).to(like) * scales
    shift = -(scales * means).sum(0)
    # One after the other: the gradients of a stack's sum would all be one and the same memory.
    shifts = (norm.bias.to(like) for norm in norms if norm.bias is not None)
    return scales, reduce(torch.add, shifts, shift)
