"""Large kernel: k x k beside one small kernel, each with its BatchNorm.

Source:
    Ding et al., RepLKNet, CVPR 2022, section 3, guideline 3, https://arxiv.org/abs/2203.06717
    Official code: https://github.com/DingXiaoH/RepLKNet-pytorch
    Vasu et al., FastViT, ICCV 2023, section 3.2.3, https://arxiv.org/abs/2303.14189, with a stride
    and more output channels in its patch embeddings: https://github.com/apple/ml-fastvit

Differences: any dilation and groups (``groups=C`` gives the depthwise block of the papers); the
deployed convolution has the padding of the block; the activation acts, which the official FastViT
computes and throws away (``activation=None`` for its weights); where a kernel is not larger than
the small one asked for, the small one has two taps fewer than it, so that a network may have
kernels of several sizes; ``post_norm`` puts one BatchNorm after the sum in the place of one in each
branch.
"""

from __future__ import annotations

from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, Sum, check_count, check_flag, normed_after_sum
from repblocks.errors import ConfigurationError


@final
@register_block("large_kernel")
class LargeKernelBlock(ConvBlock):
    """k x k, and one small kernel at its centre."""

    @classmethod
    def build_branches(
        cls, shape: ConvShape, *, small_kernel: int | None = 5, post_norm: bool = False
    ) -> nn.Module:
        """Return the branches.

        Args:
            shape: What the block replaces.
            small_kernel: Taps of the small kernel on each axis, and at most two fewer than the
                large one has; None for the large kernel alone. RepLKNet has 5, FastViT 3.
            post_norm: Whether one BatchNorm follows the sum, and the branches have none.

        Raises:
            ConfigurationError: if one of the kernels is even and the other is odd, or an argument
                is of another type.
        """
        check_flag("post_norm", post_norm)
        branches = Sum({"large": shape.conv_norm()})
        if small_kernel is not None:
            check_count("small_kernel", small_kernel)
            size = tuple(max(1, min(small_kernel, k - 2)) for k in shape.kernel_size)
            if any((k - small) % 2 for k, small in zip(shape.kernel_size, size, strict=True)):
                raise ConfigurationError(
                    "small_kernel and kernel_size must both be odd or both be even, for one to lie "
                    f"at the centre of the other, got {small_kernel} and {shape.kernel_size}."
                )
            if size != shape.kernel_size:
                branches["small"] = shape.resized(size).conv_norm()
        return normed_after_sum(branches, shape) if post_norm else branches
