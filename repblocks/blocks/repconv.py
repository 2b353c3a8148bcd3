"""RepConv: k x k and 1 x 1, each with its BatchNorm, and SiLU, as detectors use it.

Source:
    Wang et al., YOLOv7, CVPR 2023, section 4.1, https://arxiv.org/abs/2207.02696: RepVGG's block
    without identity ("RepConvN"), as an identity destroys the residual or the concatenation that it
    stands in.
    Official code: https://github.com/WongKinYiu/yolov7

Differences: there is no identity unless ``use_identity`` asks for one (the YOLOv7 class has one
wherever the shape allows it); any odd kernel size; padding and dilation reach every branch;
grouped identities fold; ``post_norm`` puts one BatchNorm after the sum in the place of one in each
branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, Sum, check_flag, normed_after_sum


@final
@register_block("repconv")
class RepConvBlock(ConvBlock):
    """k x k and 1 x 1, identity where it is asked for, and SiLU."""

    decayed = ("branches.identity.norm.weight",)
    defaults: ClassVar[Mapping[str, Any]] = {"activation": "silu", "se": None}

    @classmethod
    def build_branches(
        cls, shape: ConvShape, *, use_identity: bool = False, post_norm: bool = False
    ) -> nn.Module:
        """Return the branches.

        Args:
            shape: What the block replaces.
            use_identity: Whether there is an identity where the shape allows it: as many channels,
                and no stride.
            post_norm: Whether one BatchNorm follows the sum, and the branches have none.

        Raises:
            ConfigurationError: if an argument is of another type.
        """
        check_flag("use_identity", use_identity)
        check_flag("post_norm", post_norm)
        branches = Sum({"kxk": shape.conv_norm(), "pointwise": shape.resized(1).conv_norm()})
        if use_identity and shape.allows_identity:
            branches["identity"] = shape.identity_norm()
        return normed_after_sum(branches, shape) if post_norm else branches
