"""MobileOne: several k x k convolutions, a 1 x 1 scale branch and the identity, all with BatchNorm.

Source:
    Vasu et al., MobileOne, CVPR 2023, https://arxiv.org/abs/2206.04040
    Official code: https://github.com/apple/ml-mobileone

Differences: dilation reaches every branch; nothing of the training form stays after deployment;
``post_norm`` puts one BatchNorm after the sum in the place of one in each branch. Without k x k
branches, as in FastViT's code (https://github.com/apple/ml-fastvit), the deployed convolution has
one tap.
"""

from __future__ import annotations

from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, Sum, check_count, check_flag, normed_after_sum
from repblocks.errors import ConfigurationError


@final
@register_block("mobileone")
class MobileOneBlock(ConvBlock):
    """n times k x k, 1 x 1 if k is larger than 1, and identity where the shape allows it."""

    @classmethod
    def build_branches(
        cls,
        shape: ConvShape,
        *,
        num_conv_branches: int = 4,
        use_scale_branch: bool = True,
        post_norm: bool = False,
    ) -> nn.Module:
        """Return the branches of figure 3.

        Args:
            shape: What the block replaces.
            num_conv_branches: Parallel k x k branches; 0 leaves the scale branch and the identity.
            use_scale_branch: Whether there is a 1 x 1 branch beside kernels larger than 1.
            post_norm: Whether one BatchNorm follows the sum, and the branches have none.

        Raises:
            ConfigurationError: if no branch is left, or an argument is of another type.
        """
        check_count("num_conv_branches", num_conv_branches, 0)
        check_flag("use_scale_branch", use_scale_branch)
        check_flag("post_norm", post_norm)
        branches = Sum({f"kxk{i}": shape.conv_norm() for i in range(num_conv_branches)})
        if use_scale_branch and max(shape.kernel_size) > 1:
            branches["scale"] = shape.resized(1).conv_norm()
        if shape.allows_identity:
            branches["identity"] = shape.identity_norm()
        if not branches:
            raise ConfigurationError(
                "num_conv_branches must be at least 1 where there is neither a scale branch (of "
                "kernels larger than 1) nor an identity (of as many channels, without stride), got "
                "0."
            )
        if list(branches) in (["scale"], ["identity"]):
            return branches  # whose norm is that of the sum
        return normed_after_sum(branches, shape) if post_norm else branches
