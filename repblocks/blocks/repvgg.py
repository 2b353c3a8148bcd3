"""RepVGG: a k x k convolution, a 1 x 1 convolution and the identity, each with its BatchNorm.

Source:
    Ding et al., RepVGG, CVPR 2021, https://arxiv.org/abs/2101.03697
    Official code: https://github.com/DingXiaoH/RepVGG

Differences: any odd kernel size; dilation and padding reach every branch; squeeze-and-excitation
takes the mean of any input size; ``post_norm`` puts one BatchNorm after the sum in the place of one
in each branch. ``scale`` gives the block that RepOptimizer searches its constants with (Ding et
al., ICLR 2023, https://arxiv.org/abs/2205.15242); where in a stage it stands is for the network to
say, as ``repblocks.models.RepVGG`` does.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import (
    ConvShape,
    Scale,
    Sum,
    check_factor,
    check_flag,
    normed_after_sum,
    without_norm,
)


@final
@register_block("repvgg")
class RepVGGBlock(ConvBlock):
    """k x k, 1 x 1 and, where the shape allows it, identity."""

    decayed = ("branches.identity.norm.weight", "branches.sum.identity.scale.weight")

    @classmethod
    def build_branches(
        cls, shape: ConvShape, *, post_norm: bool = False, scale: float | None = None
    ) -> nn.Module:
        """Return the branches of section 3.2.

        Args:
            shape: What the block replaces.
            post_norm: Whether one BatchNorm follows the sum, and the branches have none.
            scale: The first value of a factor for each channel at the end of the convolutions,
                with one of 1 at the end of the identity; the only BatchNorm then follows the sum.
                None for no factors.

        Raises:
            ConfigurationError: if an argument is of another type, or ``scale`` is not above 0.
        """
        check_flag("post_norm", post_norm)
        if scale is not None:
            return _scaled(shape, scale)
        branches = Sum({"kxk": shape.conv_norm(), "pointwise": shape.resized(1).conv_norm()})
        if shape.allows_identity:
            branches["identity"] = shape.identity_norm()
        return normed_after_sum(branches, shape) if post_norm else branches


def _scaled(shape: ConvShape, scale: float) -> nn.Module:
    check_factor("scale", scale)
    branches = Sum({"kxk": shape.conv(), "pointwise": shape.resized(1).conv()})
    for branch in branches.values():
        branch.add_module("scale", Scale(shape.out_channels, scale))
    if shape.allows_identity:
        identity = nn.Sequential(OrderedDict(input=without_norm(shape.identity_norm())))
        identity.add_module("scale", Scale(shape.out_channels))
        branches["identity"] = identity
    return normed_after_sum(branches, shape)
