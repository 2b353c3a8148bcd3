"""RepVGGDW: k x k with BatchNorm, 1 x 1 and identity without, and one BatchNorm of the sum.

Source:
    Wang et al., RepViT, CVPR 2024, section 3.2, https://arxiv.org/abs/2307.09283
    Official code: https://github.com/THU-MIG/RepViT

In RepViT it is depthwise, which ``groups=C`` gives, and no activation follows it, which
``activation=None`` gives.

Differences: any channels, groups, stride, dilation and padding, where identity is left out if the
shape does not allow it; any odd kernel size, with the 1 x 1 at its centre.
"""

from __future__ import annotations

from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, Sum, check_flag, normed_after_sum, without_norm


@final
@register_block("repvgg_dw")
class RepVGGDWBlock(ConvBlock):
    """k x k with BatchNorm, biased 1 x 1, identity, and one BatchNorm of the sum."""

    @classmethod
    def build_branches(cls, shape: ConvShape, *, legacy: bool = False) -> nn.Module:
        """Return the branches.

        Args:
            shape: What the block replaces.
            legacy: Whether the 1 x 1 has a BatchNorm instead of a bias, and the sum has none: the
                first version, that of RepViT-M1 to M3.

        Raises:
            ConfigurationError: if an argument is of another type.
        """
        check_flag("legacy", legacy)
        centre = shape.resized(1)
        pointwise = centre.conv_norm() if legacy else centre.conv(bias=True)
        branches = Sum({"kxk": shape.conv_norm(), "pointwise": pointwise})
        if shape.allows_identity:
            branches["identity"] = without_norm(shape.identity_norm())
        return branches if legacy else normed_after_sum(branches, shape, keep=("kxk",))
