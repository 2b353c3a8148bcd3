"""A convolution and its BatchNorm: the block that the others are compared with.

Source:
    Ioffe and Szegedy, Batch Normalization, ICML 2015, https://arxiv.org/abs/1502.03167
"""

from __future__ import annotations

from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape


@final
@register_block("plain")
class PlainBlock(ConvBlock):
    """k x k convolution, then BatchNorm."""

    @classmethod
    def build_branches(cls, shape: ConvShape) -> nn.Module:
        """Return the one branch."""
        return shape.conv_norm()
