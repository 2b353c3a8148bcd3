"""CopyConv: outputs of a small kernel and of a large one, each a sum of mixed kernels.

It is the strided layer between the stages of the chunked RepNeXt: with ``groups=C`` and 2C outputs
every channel goes through a kernel of 3 taps and through one of 7.

Source:
    Zhao et al., RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization, 2024,
    section 3, https://arxiv.org/abs/2406.16004
    Official code: https://github.com/suous/RepNeXt

Differences: the outputs of the two kernels alternate from group to group, where the official code
has first all of one and then all of the other, so that the block is one grouped convolution; the
BatchNorm that its network has after it is part of the block; any channels, groups, stride,
dilation, odd kernel sizes and numbers of axes. Where a group has a single output, half of the
groups have the small kernel. The deployed small kernels are filled up with zeros to the size of the
large ones: 98 multiply-adds for the two outputs of a channel with 7 taps, where two convolutions
would have 58.
"""

from __future__ import annotations

from dataclasses import replace
from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, GroupConcat, SplitConcat, check_count, mixed_kernels
from repblocks.errors import ConfigurationError


@final
@register_block("copy_conv")
class CopyConvBlock(ConvBlock):
    """Outputs of a small and of a large kernel, and one BatchNorm."""

    takes_any_kernel = False  # half of the outputs have small ones

    @classmethod
    def build_branches(cls, shape: ConvShape, *, small_kernel: int = 3) -> nn.Module:
        """Return the kernels of both sizes, and the BatchNorm.

        Args:
            shape: What the block replaces.
            small_kernel: Taps of the small kernel on each axis where the large one has more.

        Raises:
            ConfigurationError: if a kernel size is even.
        """
        check_count("small_kernel", small_kernel)
        sizes = tuple(min(small_kernel, k) for k in shape.kernel_size)
        if any(size % 2 == 0 for size in (*sizes, *shape.kernel_size)):
            raise ConfigurationError(
                "kernel_size and small_kernel must be odd, for one to lie at the centre of the "
                f"other, got {shape.kernel_size} and {small_kernel}."
            )
        series = nn.Sequential()
        series.add_module("kernels", _both(shape, shape.resized(sizes)))
        series.add_module("norm", shape.norm())
        return series


def _both(large: ConvShape, small: ConvShape) -> nn.Module:
    groups = large.groups
    outputs = large.out_channels // groups
    if outputs > 1:
        narrow = replace(small, out_channels=groups * (outputs // 2))
        wide = replace(large, out_channels=large.out_channels - narrow.out_channels)
        return GroupConcat({"small": mixed_kernels(narrow), "large": mixed_kernels(wide)}, groups)
    if groups == 1:
        return mixed_kernels(large)
    parts = [_of_groups(small, groups // 2), _of_groups(large, groups - groups // 2)]
    return SplitConcat([part.in_channels for part in parts], [mixed_kernels(p) for p in parts])


def _of_groups(shape: ConvShape, groups: int) -> ConvShape:
    """Return the shape of some of the groups."""
    return replace(
        shape,
        in_channels=shape.in_channels // shape.groups * groups,
        out_channels=shape.out_channels // shape.groups * groups,
        groups=groups,
    )
