"""ACB: a k x k convolution and its two skeletons, 1 x k and k x 1, each with its BatchNorm.

Source:
    Ding et al., ACNet, ICCV 2019, https://arxiv.org/abs/1908.03930
    Official code: https://github.com/DingXiaoH/ACNet

Differences: dilation reaches the asymmetric branches; ``post_norm`` puts one BatchNorm after the
sum in the place of one in each branch. Norms without scales fold, too, where
the official code fails. In n dimensions there is one skeleton for each axis, with a single tap on
that axis: 1 x k x k and its like in 3-d, a 1-tap kernel in 1-d.
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import nn

from repblocks.algebra.normalization import is_batch_norm
from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, Sum, check_flag, normed_after_sum, start_scales_
from repblocks.errors import ConfigurationError


@final
@register_block("acb")
class ACBlock(ConvBlock):
    """k x k, and for each axis a kernel with a single tap on it."""

    #: What the official code calls them; its networks put a block and its ReLU into a series.
    official_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^acb\.", ""),
        (r"^(square|hor|ver)_conv\.", r"branches.\1.conv."),
        (r"^(square|hor|ver)_bn\.", r"branches.\1.norm."),
        (r"^branches\.hor\.", "branches.skeleton0."),
        (r"^branches\.ver\.", "branches.skeleton1."),
        (r"^fused_conv\.", "conv."),
    )

    @classmethod
    def build_branches(
        cls,
        shape: ConvShape,
        *,
        post_norm: bool = False,
        first_scale: float = 1.0,
        single_start: bool = False,
        use_affine: bool = True,
    ) -> nn.Module:
        """Return the branches of section 3.1; the skeleton of an axis has a single tap on it.

        Args:
            shape: What the block replaces.
            post_norm: Whether one BatchNorm follows the sum, and the branches have none.
            first_scale: What the scales of all BatchNorms start from; the official code takes one
                third on CIFAR, so that the sum of three branches starts as large as one.
            single_start: Whether the skeletons start from nothing: their scales are 0 (the official
                code's ``single_init``).
            use_affine: Whether the BatchNorms have scales and shifts.

        Raises:
            ConfigurationError: if an argument is of another type, ``first_scale`` not above 0, or
                another start is asked of scales that are not there.
        """
        check_flag("post_norm", post_norm)
        check_flag("use_affine", use_affine)
        branches = Sum({"square": shape.conv_norm()})
        for axis in range(shape.ndim):
            size = tuple(1 if i == axis else k for i, k in enumerate(shape.kernel_size))
            branches[f"skeleton{axis}"] = shape.resized(size).conv_norm()
        tree = normed_after_sum(branches, shape) if post_norm else branches
        start_scales_(tree, first_scale, single_start)
        if not use_affine:
            if single_start or first_scale != 1:
                raise ConfigurationError(
                    "use_affine must be true for single_start and first_scale, as there are no "
                    "scales without it, got False."
                )
            _drop_scales_(tree)
        return tree


def _drop_scales_(tree: nn.Module) -> None:
    for norm in filter(is_batch_norm, tree.modules()):
        norm.affine = False
        norm.weight = norm.bias = None  # type: ignore[assignment] # as torch has it
