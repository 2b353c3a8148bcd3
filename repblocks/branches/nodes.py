"""The nodes of a branch tree: what a block sums, splits, pads and pools.

A tree is made of these, of ``nn.Sequential`` for a series, and of torch's own layers. Each node
says what it does to an affine map in the one table of rules; nothing else knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import EllipsisType

import torch
from torch import Tensor, nn
from torch.nn import functional

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.axis import Axis, torch_order
from repblocks.algebra.parallel import add, concat
from repblocks.algebra.rules import apply, rule
from repblocks.algebra.serial import compose
from repblocks.algebra.special import CONV_FUNCTIONS, average_pooling, zero_padding

Pairs = tuple[tuple[int, int], ...]

NORM_CLASSES: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
#: By the number of axes of a tensor.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(weight: Tensor) -> bool:
    """Tell whether a weight with two or three spatial axes is stored with its channels last."""
    memory_format = CHANNELS_LAST.get(weight.ndim)
    if memory_format is None:
        return False
    if not weight.is_contiguous():
        return weight.is_contiguous(memory_format=memory_format)
    # Weights of one channel a group, or of one tap, are both; how they are stored still tells.
    usual = torch.empty(weight.shape, device="meta")
    return weight.stride() == usual.to(memory_format=memory_format).stride() != usual.stride()


class Sum(nn.ModuleDict):
    """Parallel branches of one input, summed."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, *spatial)`` to ``(N, C_out, *spatial)``."""
        first, *others = self.values()
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total


@rule(Sum)
def _sum(module: Sum, value: AffineMap, like: Tensor | None) -> AffineMap:
    return add(*(apply(branch, value, like) for branch in module.values()))


class SplitConcat(nn.ModuleList):
    """Contiguous chunks of the channels, each through a branch of its own, concatenated.

    Args:
        sizes: Channels of each chunk.
        branches: As many branches.
    """

    def __init__(self, sizes: Sequence[int], branches: Sequence[nn.Module]) -> None:
        super().__init__(branches)
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, *spatial)`` to ``(N, C_out, *spatial)``."""
        chunks = torch.split(x, list(self.sizes), dim=1)
        return torch.cat([branch(c) for branch, c in zip(self, chunks, strict=True)], dim=1)


@rule(SplitConcat)
def _split_concat(module: SplitConcat, value: AffineMap, like: Tensor | None) -> AffineMap:
    ends = [sum(module.sizes[:i]) for i in range(len(module.sizes) + 1)]
    chunks = [value.rows(start, stop) for start, stop in pairwise(ends)]
    return concat(*(apply(b, chunk, like) for b, chunk in zip(module, chunks, strict=True)))


class GroupConcat(nn.ModuleDict):
    """Parallel branches of one input, whose outputs are concatenated within each group.

    Args:
        branches: Each with the same number of groups.
        groups: That number.
    """

    def __init__(self, branches: Mapping[str, nn.Module], groups: int) -> None:
        super().__init__(branches)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, *spatial)`` to ``(N, C_out, *spatial)``."""
        outputs = [branch(x) for branch in self.values()]
        if self.groups == 1:
            return torch.cat(outputs, dim=1)
        parts = [y.unflatten(1, (self.groups, -1)) for y in outputs]
        mixed = torch.cat(parts, dim=2).flatten(1, 2)
        last = CHANNELS_LAST.get(x.ndim)
        if last is not None and outputs[0].is_contiguous(memory_format=last):
            return mixed.contiguous(memory_format=last)  # the views do not keep it
        return mixed

    def _order(self, channels: Sequence[int]) -> Tensor:
        """Return where each output stands among those of one branch after the other."""
        places = torch.split(torch.arange(sum(channels), device="cpu"), list(channels))
        return torch.cat([part.view(self.groups, -1) for part in places], dim=1).flatten()


@rule(GroupConcat)
def _group_concat(module: GroupConcat, value: AffineMap, like: Tensor | None) -> AffineMap:
    parts = [apply(branch, value, like) for branch in module.values()]
    return concat(*parts).reordered(module._order([part.out_channels for part in parts]))


class Pad(nn.Module):
    """Zero padding, ``(low, high)`` an axis; negative crops."""

    def __init__(self, padding: Pairs) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Pad the spatial axes of ``(N, C, *spatial)``."""
        return functional.pad(x, torch_order(self.padding))

    def extra_repr(self) -> str:
        """Show the padding."""
        return f"{self.padding}"


@rule(Pad)
def _pad(module: Pad, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    axes = [Axis(1, 1, low, high) for low, high in module.padding]
    return compose(zero_padding(value.out_channels, axes), value)


class Subsample(nn.Module):
    """Keep every ``stride``-th position: the stride of a pointwise convolution.

    A strided pointwise convolution of few channels in channels_last corrupts memory in the weight
    gradient of some CPU builds of torch 2.15; this and a convolution of stride 1 do the same.
    """

    def __init__(self, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to every ``stride``-th position of it."""
        taken: list[slice | EllipsisType] = [...]
        taken += [slice(None, None, step) for step in self.stride]
        return x[tuple(taken)]

    def extra_repr(self) -> str:
        """Show the stride."""
        return f"stride={self.stride}"


@rule(Subsample)
def _subsample(module: Subsample, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    axes = [Axis(1, stride) for stride in module.stride]
    return compose(zero_padding(value.out_channels, axes), value)


class AveragePool(nn.Module):
    """Average pooling without padding, dilated if wished, in 1, 2 or 3 dimensions."""

    def __init__(
        self, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.axes = tuple(
            map(Axis, kernel_size, stride, (0,) * len(stride), (0,) * len(stride), dilation)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to the averages of its windows."""
        sizes = [axis.size for axis in self.axes]
        weight = x.new_full((x.shape[1], 1, *sizes), 1 / torch.Size(sizes).numel())
        stride = [axis.stride for axis in self.axes]
        dilation = [axis.dilation for axis in self.axes]
        return CONV_FUNCTIONS[len(sizes)](x, weight, None, stride, 0, dilation, x.shape[1])

    def extra_repr(self) -> str:
        """Show the windows."""
        return f"{self.axes}"


@rule(AveragePool)
def _average_pool(module: AveragePool, value: AffineMap, like: Tensor | None) -> AffineMap:
    return compose(average_pooling(value.out_channels, module.axes, like), value)


class BatchNormPad(nn.Module):
    """Batch normalisation, then padding with what it gives on zeros.

    The padding makes the next, unpadded convolution see what a padded one before the normalisation
    would give, so that the two fold into one kernel that is exact at the border. The border comes
    from the running statistics, in training too, where it carries no gradient: it is then not what
    the batch would give. With frozen statistics it is, and has its gradient.

    Source:
        Ding et al., Diverse Branch Block, CVPR 2021, section 3.2, https://arxiv.org/abs/2103.13425
    """

    def __init__(self, channels: int, padding: Pairs) -> None:
        super().__init__()
        self.norm = NORM_CLASSES[len(padding)](channels)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to the padded normalisation of it."""
        y: Tensor = self.norm(x)
        sides = torch_order(self.padding)
        outside = 1 - functional.pad(y.new_ones(1, 1, *y.shape[2:]), sides)
        border = self.image_of_zero().to(y.dtype).view(-1, *(1,) * len(self.padding))
        return functional.pad(y, sides) + border * outside

    def image_of_zero(self) -> Tensor:
        """Return what the running statistics make of zeros, ``(C,)``: the border.

        Raises:
            RuntimeError: if the running statistics are switched off.
        """
        norm = self.norm
        if norm.running_mean is None or norm.running_var is None:
            raise RuntimeError("BatchNormPad needs running statistics; do not switch them off.")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not norm.training):
            factor = (norm.running_var + norm.eps).rsqrt()
            return norm.bias - norm.running_mean * norm.weight * factor


@rule(BatchNormPad)
def _batch_norm_pad(module: BatchNormPad, value: AffineMap, like: Tensor | None) -> AffineMap:
    channels = AffineMap.identity(value.out_channels)
    own = apply(module.norm, channels, like).with_axes(len(module.padding))
    padded = replace(own, axes=tuple(Axis(1, 1, low, high) for low, high in module.padding))
    return compose(padded, value)
