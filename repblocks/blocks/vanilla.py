"""Vanilla: two pointwise convolutions whose activation is annealed away, and a series activation.

The activation in between is a leaky one whose slope below zero goes from 0 to 1 in the course of
training. At 1 it is the identity, and the two convolutions are one; before that no convolution
equals them. After them comes a rectifier and a depthwise convolution of its values.

Source:
    Chen et al., VanillaNet: the Power of Minimalism in Deep Learning, NeurIPS 2023, section 3,
    https://arxiv.org/abs/2305.12972
    Official code: https://github.com/huawei-noah/VanillaNet

Differences: a fold before the end of the annealing is refused, where the official code gives a
network of another function; the slope stands in the state dict; no convolution has a bias before
its BatchNorm; another conv block may take the place of the depthwise convolution. 1-d and 3-d.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import cos, pi
from typing import Any, final

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.normalization import is_batch_norm
from repblocks.algebra.rules import rule
from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import Affine, StageBlock, depthwise_block
from repblocks.blocks._tail import create_activation
from repblocks.branches import ConvShape, check_choice, check_count
from repblocks.errors import ConfigurationError, NotFoldable

SCHEDULES = ("linear", "cosine")
_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


class AnnealedReLU(nn.Module):
    """A leaky rectifier whose slope below zero, at first 0, is set from outside."""

    slope: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` value by value."""
        return torch.where(x > 0, x, x * self.slope.to(x.dtype))


class MaxPoolTo(nn.Module):
    """The maxima of torch's adaptive pooling, by operations that every format of export has.

    Args:
        size: Positions that are left of each axis.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, size, ...)``."""
        for axis in range(2, x.ndim):
            taken = [x.index_select(axis, each.to(x.device)) for each in self._taps(x.shape[axis])]
            x = reduce(torch.maximum, taken)
        return x

    def _taps(self, length: int) -> list[Tensor]:
        """Return the first position of each window, the second, and so on; short ones repeat."""
        starts = [i * length // self.size for i in range(self.size)]
        lasts = [((i + 1) * length - 1) // self.size for i in range(self.size)]
        windows = [*zip(starts, lasts, strict=True)]
        widest = max(last - start for start, last in windows)
        return [torch.tensor([min(s + n, last) for s, last in windows]) for n in range(widest + 1)]


@rule(AnnealedReLU)
def _annealed(module: AnnealedReLU, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    if not module.slope.is_meta and module.slope.item() != 1:
        raise NotFoldable(
            "The annealed activation is linear where its slope is 1, got "
            f"{module.slope.item():.6g}. Train to the end of the annealing, where "
            "repblocks.blocks.anneal(model, 1.0) is called; a fold before that would be wrong."
        )
    return value


@final
@register_stage_block("vanilla")
class VanillaBlock(StageBlock):
    """Two pointwise convolutions that become one, and a series activation.

    It must be told how far the training is: ``repblocks.blocks.anneal(model, progress)`` before
    each epoch, and with 1 before the last ones, so that they train the function that is deployed.

    Args:
        dim: C_in.
        out_channels: C_out; None for as many.
        hidden: Channels between the two convolutions; None for C_in.
        patch: Taps and stride of the first convolution; above 1 it is a stem.
        stride: Its stride, where that is another.
        padding: Zeros on each side of its input.
        pool: Taps and stride of a maximum between the convolutions and the series; 1 for none.
        pool_to: Positions of each axis that are left by this maximum, whatever their number before
            it; None for those of ``pool``.
        act_reach: Positions on each side that the series activation reads; 0 for the rectifier
            and its BatchNorm alone.
        schedule: How the slope follows the progress: ``"linear"`` or ``"cosine"``.
        activation: A torch activation in lower case, that of the series.
        block: A conv block, by name, for the depthwise convolution of the series; None for
            ``plain``.
        block_options: Options of that conv block.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the block of the series computes its branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """

    def __init__(
        self,
        dim: int,
        *,
        out_channels: int | None = None,
        hidden: int | None = None,
        patch: int = 1,
        stride: int | None = None,
        padding: int = 0,
        pool: int = 1,
        pool_to: int | None = None,
        act_reach: int = 3,
        schedule: str = "linear",
        activation: str = "relu",
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("act_reach", act_reach, 0)
        check_count("pool", pool)
        check_choice("schedule", schedule, SCHEDULES)
        self.schedule = schedule
        hidden = dim if hidden is None else hidden
        out_channels = dim if out_channels is None else out_channels
        stride = patch if stride is None else stride
        first = ConvShape.create(dim, hidden, patch, stride, padding, ndim=ndim)
        second = ConvShape.create(hidden, out_channels, 1, ndim=ndim)
        self.conv: nn.Module = Affine(
            dim, ndim, conv1=first.conv_norm(), act=AnnealedReLU(), conv2=second.conv_norm()
        )
        self.pool = _pool(pool, pool_to, ndim)
        self.act = create_activation(activation)
        series = depthwise_block(
            "plain",
            out_channels,
            2 * act_reach + 1,
            ndim,
            block=block,
            block_options=block_options,
            execution=execution,
        )
        self.series: nn.Module = Affine(out_channels, ndim, conv=series)
        for norm in filter(is_batch_norm, self.modules()):
            norm.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, *spatial)`` to ``(N, C_out, *sizes)``, ``spatial / (stride * pool)``."""
        y: Tensor = self.series(self.act(self.pool(self.conv(x))))
        return y

    def anneal(self, progress: float) -> None:
        """Set the slope of the annealed activation: 0 at the start, 1 at the end."""
        slope = progress if self.schedule == "linear" else 0.5 * (1 - cos(pi * progress))
        for module in self.modules():
            if isinstance(module, AnnealedReLU):
                module.slope.fill_(slope)


def _pool(pool: int, pool_to: int | None, ndim: int) -> nn.Module:
    """Return a maximum over some positions, or one that leaves some.

    Raises:
        ConfigurationError: if both are asked for.
    """
    if pool_to is not None:
        check_count("pool_to", pool_to)
        if pool != 1:
            raise ConfigurationError(f"pool must be 1 with pool_to={pool_to}, got {pool}.")
        return MaxPoolTo(pool_to)
    return nn.Identity() if pool == 1 else _POOLS[ndim](pool)
