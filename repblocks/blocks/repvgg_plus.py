"""RepVGGplus: the branches of RepVGG, and squeeze-and-excitation after the activation.

Source:
    Official code: https://github.com/DingXiaoH/RepVGG, ``repvggplus.py``, 2022, by the authors of
    Ding et al., RepVGG, CVPR 2021, https://arxiv.org/abs/2101.03697

The branches become one convolution; activation and squeeze-and-excitation ("post-SE") stay, as
they are no affine map. ``se`` is a quarter of the channels by default; ``se=None`` gives the RepVGG
block.

Differences: any odd kernel size; dilation and padding reach every branch; squeeze-and-excitation
takes the mean of any input size; the block returns no regularisation term (``equivalent_kernel`` is
differentiable, for one of your own); ``post_norm`` puts one BatchNorm after the sum in the place of
one in each branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.blocks.repvgg import RepVGGBlock
from repblocks.branches import ConvShape


@final
@register_block("repvgg_plus")
class RepVGGPlusBlock(ConvBlock):
    """k x k, 1 x 1 and identity, then activation, then squeeze-and-excitation."""

    decayed = RepVGGBlock.decayed
    defaults: ClassVar[Mapping[str, Any]] = {"activation": "relu", "se": 0.25}
    se_is_last = True

    @classmethod
    def build_branches(cls, shape: ConvShape, *, post_norm: bool = False) -> nn.Module:
        """Return the branches of RepVGG.

        Args:
            shape: What the block replaces.
            post_norm: Whether one BatchNorm follows the sum, and the branches have none.

        Raises:
            ConfigurationError: if an argument is of another type.
        """
        return RepVGGBlock.build_branches(shape, post_norm=post_norm)
