"""ChunkConv: four chunks of the channels, left alone, or under a small, a medium or a long kernel.

Source:
    Zhao et al., RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization, 2024,
    section 3, https://arxiv.org/abs/2406.16004
    Official code: https://github.com/suous/RepNeXt

The small and the medium kernel are sums of mixed kernels (3 and 7 taps); the long one (11 taps) is
a series of one kernel for each axis, with a bias each. A bias in front of a padded kernel has no
equal in one kernel, so the series stays one when the block is deployed; the small and the medium
kernel fold.

Differences: the channels need not be a multiple of 4; ``long_bias=False`` leaves the biases of the
series out, and then ``deploy_form="one"`` gives one depthwise convolution of 11 x 11 (121 C
multiply-adds a position, where the chunks have 20 C), which the official code tests but does not
train; 1-d and 3-d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from repblocks.blocks._base import ConvBlock, deployed_conv, kernel_of
from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import Affine, StageBlock
from repblocks.branches import (
    ConvShape,
    SplitConcat,
    check_choice,
    check_count,
    check_flag,
    check_kernel_sizes,
    mixed_kernels,
)

FORMS = ("chunks", "one")


@final
class MixedKernelsBlock(ConvBlock):
    """Kernels of mixed forms, summed, without a norm. Not registered: a part of a chunked block."""

    defaults = {"activation": None, "se": None}  # noqa: RUF012 - as declared by the base class

    @classmethod
    def build_branches(cls, shape: ConvShape) -> nn.Module:
        """Return the kernels."""
        return mixed_kernels(shape)


@final
@register_stage_block("chunk_conv")
class ChunkConvBlock(StageBlock):
    """Identity, small, medium and long depthwise kernels, each of a quarter of the channels.

    Args:
        dim: C, at least 4.
        kernel_sizes: Odd numbers of taps of the small, the medium and the long kernel.
        long_bias: Whether the kernels of the long series have biases.
        deploy_form: ``"chunks"`` or ``"one"``: one depthwise convolution of the long size, only
            without those biases; it may be set until the block is switched.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the chunks compute their branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_sizes: Sequence[int] = (3, 7, 11),
        long_bias: bool = True,
        deploy_form: str = "chunks",
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("deploy_form", deploy_form, FORMS)
        self.deploy_form = deploy_form
        self.dim, self.ndim = dim, ndim
        self.chunks: nn.Module = chunked(dim, kernel_sizes, long_bias, ndim, execution)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        y: Tensor = self.chunks(x)
        return y

    def _fold(self) -> Mapping[str, nn.Module | None]:
        check_choice("deploy_form", self.deploy_form, FORMS)
        if self.deploy_form == "chunks":
            return super()._fold()
        kernel = kernel_of(self.chunks, self.dim, self.ndim, torch.float64)
        return {"chunks": deployed_conv(kernel, self.chunks)}


def chunked(
    dim: int, kernel_sizes: Sequence[int], long_bias: bool, ndim: int, execution: str
) -> SplitConcat:
    """Return the four chunks; the last ones may have a channel fewer than the first.

    Raises:
        ConfigurationError: if an argument is out of range.
    """
    check_count("dim", dim, 4)
    check_flag("long_bias", long_bias)
    check_kernel_sizes(kernel_sizes, 3)
    sizes = [dim // 4 + (i < dim % 4) for i in range(4)]
    small, medium, long = kernel_sizes
    mixed = [
        MixedKernelsBlock(size, size, kernel, groups=size, ndim=ndim, execution=execution)
        for size, kernel in zip(sizes[1:], (small, medium), strict=False)
    ]
    parts = [Affine(block.shape.in_channels, ndim, mixed=block) for block in mixed]
    return SplitConcat(sizes, [nn.Identity(), *parts, _long(sizes[3], long, long_bias, ndim)])


def _long(channels: int, taps: int, bias: bool, ndim: int) -> nn.Sequential:
    """Return one depthwise kernel for each axis, the last axis first."""
    series = nn.Sequential()
    for axis in reversed(range(ndim)):
        size = [taps if i == axis else 1 for i in range(ndim)]
        shape = ConvShape.create(channels, channels, size, groups=channels, ndim=ndim)
        series.add_module(f"axis{axis}", shape.conv(bias))
    return series
