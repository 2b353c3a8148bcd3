"""DO-Conv: k x k filters of each channel, several times as many, mixed by a pointwise kernel.

With ``D (C_in, k², m)`` and ``W (C_out, C_in // groups, m)`` the kernel is ``W' = (D + I) W``: for
each input channel its k² taps are combinations of m trained numbers. D starts from zero and I is
fixed, so that the block starts as the convolution W, and weight decay acts towards it.

Source:
    Cao et al., DO-Conv, 2020 (TIP 2022), section 3, https://arxiv.org/abs/2006.12030
    Official code: https://github.com/yangyanli/DO-Conv

Differences: the kernel is composed by the algebra, from a depthwise convolution and a pointwise one
that also can run as they are. With groups, a kernel uses the D of the input channel that it reads;
the official code reads D as if there were no groups, and so uses that of another channel. A depth
multiplier below k² is refused; there the official identity is empty, and the layer starts as zero.
A BatchNorm follows, unless ``norm`` is false: the official layer takes the place of a convolution
alone. 1-d and 3-d.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import final

import torch
from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import (
    ConvShape,
    FixedFilters,
    Pad,
    Sum,
    check_count,
    check_flag,
    one_kernel,
)


@final
@register_block("do_conv")
class DOConvBlock(ConvBlock):
    """Many depthwise filters, and 1 x 1.

    A 1 x 1 kernel stays what it is.
    """

    @classmethod
    def build_branches(
        cls, shape: ConvShape, *, depth_multiplier: int | None = None, norm: bool = True
    ) -> nn.Module:
        """Return the kernel of section 3.

        Args:
            shape: What the block replaces.
            depth_multiplier: Filters of each input channel, m; None for one a tap.
            norm: Whether a BatchNorm follows the kernel; if not, the kernel has a bias.

        Raises:
            ConfigurationError: if there are fewer filters than taps, or an argument is of another
                type.
        """
        taps = prod(shape.kernel_size)
        multiplier = taps if depth_multiplier is None else depth_multiplier
        reason = f", the taps of kernel_size {shape.kernel_size}"
        check_count("depth_multiplier", multiplier, taps, reason)
        check_flag("norm", norm)
        if taps == 1:
            return shape.conv_norm() if norm else shape.conv(bias=True)
        depthwise = replace(
            shape.unpadded(),
            out_channels=shape.in_channels * multiplier,
            groups=shape.in_channels,
        )
        series = nn.Sequential()
        series.add_module("pad", Pad(shape.padding))
        series.add_module("depthwise", _from_identity(depthwise))
        pointwise = replace(shape, in_channels=shape.in_channels * multiplier)
        series.add_module("pointwise", pointwise.pointwise(shape.out_channels).conv(bias=not norm))
        return one_kernel(shape, series, norm)


def _from_identity(depthwise: ConvShape) -> Sum:
    """Return filters of a single tap each, and a convolution that starts from zero."""
    delta = depthwise.conv()
    for weight in delta.parameters():
        nn.init.zeros_(weight)
    taps = prod(depthwise.kernel_size)
    multiplier = depthwise.out_channels // depthwise.in_channels
    whole = torch.eye(taps, dtype=torch.int64).repeat(multiplier // taps, 1)
    none = torch.zeros(multiplier % taps, taps, dtype=torch.int64)
    diagonal = torch.cat([whole, none]).repeat(depthwise.in_channels, 1)
    filters = diagonal.view(-1, *depthwise.kernel_size)
    return Sum({"identity": FixedFilters(filters, depthwise), "delta": delta})
