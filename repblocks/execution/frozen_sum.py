"""A sum of normalised kernels whose norms are frozen: its kernel, by few operations on stacks.

The algebra finds the same kernel, for this and for everything else, but works out the structure of
the branches each time. Here that is read once, and a step evaluates the weights alone.

Shapes: B branches, O output channels, D input channels of a group, ``*k`` taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import embed
from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.branches import AveragePool
from repblocks.execution.reading import NormedConv, branches_of, common_axes, read_branch


@dataclass(frozen=True)
class FrozenSum:
    """The branches of a block, each a kernel, an average or the input, and its BatchNorm.

    Args:
        same: Branches with the same kind of kernel.
        axes: Where the taps of the sum read.
        groups: Of every kernel.
    """

    same: tuple[tuple[NormedConv, ...], ...]
    axes: tuple[Axis, ...]
    groups: int

    def kernel(self) -> ConvKernel:
        """Return the kernel of the sum, differentiably."""
        like = next(b.conv.weight for b in self.same[0] if isinstance(b.conv, Conv))
        scales, shift = _normalised([b.norm for branches in self.same for b in branches], like)
        own_scales = torch.split(scales, [len(branches) for branches in self.same])
        parts = zip(self.same, own_scales, strict=True)
        weights = [self._weight(branches, own, like) for branches, own in parts]
        return ConvKernel(
            reduce(torch.add, weights),
            shift,
            tuple(axis.stride for axis in self.axes),
            tuple((axis.low, axis.high) for axis in self.axes),
            tuple(axis.dilation for axis in self.axes),
            self.groups,
        )

    def _weight(self, branches: Sequence[NormedConv], scales: Tensor, like: Tensor) -> Tensor:
        """Return the weight ``(O, D, *k)`` of some branches of one kind."""
        convs = [branch.conv for branch in branches]
        weights = [conv.weight for conv in convs if isinstance(conv, Conv)]
        own = torch.stack(weights) if weights else self._average(branches[0], like)
        total = (scales.view(*scales.shape, *(1,) * (own.ndim - 2)) * own).sum(0)
        return embed(total, branches[0].axes, self.axes)

    def _average(self, branch: NormedConv, like: Tensor) -> Tensor:
        """Return the kernel of an average, or of the input itself, ``(1, O, D, *k)``."""
        depth = like.shape[1]
        own = torch.eye(depth, dtype=like.dtype, device=like.device) / branch.taps
        sizes = [axis.size for axis in branch.axes]
        every = own.repeat(self.groups, 1).view(1, -1, depth, *(1,) * len(sizes))
        return every.expand(-1, -1, -1, *sizes)


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
    if axes is None or not groups or len({branch.norm.affine for branch in known}) > 1:
        return None
    same: dict[object, list[NormedConv]] = {}
    for branch in sorted(known, key=lambda branch: not isinstance(branch.conv, Conv)):
        kind = AveragePool if isinstance(branch.conv, AveragePool) else type(branch.conv)
        same.setdefault((kind, branch.axes), []).append(branch)
    return FrozenSum(tuple(map(tuple, same.values())), axes, groups[0])


def _normalised(norms: Sequence[Any], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales ``(B, O)`` of frozen norms, and the sum ``(O,)`` of their shifts."""
    with torch.no_grad():
        variances = torch.stack([norm.running_var for norm in norms]).to(like)
        means = torch.stack([norm.running_mean for norm in norms]).to(like)
        epsilon = variances.new_tensor([norm.eps for norm in norms]).unsqueeze(1)
        scales = (variances + epsilon).rsqrt()
    if not norms[0].affine:
        return scales, -(scales * means).sum(0)
    scales = torch.stack([norm.weight for norm in norms]).to(like) * scales
    # One after the other: the gradients of a stack's sum would all be one and the same memory.
    shift = reduce(torch.add, (norm.bias.to(like) for norm in norms))
    return scales, shift - (scales * means).sum(0)
