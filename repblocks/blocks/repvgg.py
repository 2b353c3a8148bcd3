"""RepVGG: a k x k convolution, a 1 x 1 convolution and the identity, each with its BatchNorm.

Source:
    Ding et al., RepVGG, CVPR 2021, https://arxiv.org/abs/2101.03697
    Official code: https://github.com/DingXiaoH/RepVGG

Differences: any odd kernel size; dilation and padding reach every branch; squeeze-and-excitation
takes the mean of any input size; ``post_norm`` puts one BatchNorm after the sum in the place of one
in each branch.
"""

from __future__ import annotations

from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, Sum, check_flag, normed_after_sum


@final
@register_block("repvgg")
class RepVGGBlock(ConvBlock):
    """k x k, 1 x 1 and, where the shape allows it, identity."""

    decayed = ("branches.identity.norm.weight",)

    @classmethod
    def build_branches(cls, shape: ConvShape, *, post_norm: bool = False) -> nn.Module:
        """Return the branches of section 3.2.

        Args:
            shape: What the block replaces.
            post_norm: Whether one BatchNorm follows the sum, and the branches have none.

        Raises:
            ConfigurationError: if an argument is of another type.
        """
        check_flag("post_norm", post_norm)
        branches = Sum({"kxk": shape.conv_norm(), "pointwise": shape.resized(1).conv_norm()})
        if shape.allows_identity:
            branches["identity"] = shape.identity_norm()
        return normed_after_sum(branches, shape) if post_norm else branches
