"""QARepVGG: RepVGG whose sum is normalised, so that its folded kernel can be quantized.

Source:
    Chu et al., Make RepVGG Greater Again: A Quantization-aware Approach, AAAI 2024, section 3,
    https://arxiv.org/abs/2212.01593
    Official code: https://github.com/cxxgtxy/QARepVGG; the average of version 2 in YOLOv6:
    https://github.com/meituan/YOLOv6

The variance that BatchNorms of single branches give their equivalent kernels is what 8 bits cannot
hold. Version 2, that of the paper's results, keeps the norm of k x k alone; version 1 keeps all.

Differences: any odd kernel size; dilation and padding reach every branch. The norm of the sum folds
with it (YOLOv6 keeps it, for quantization-aware training: ``insert_bn`` brings one back), and
squeeze-and-excitation follows it (the official code has it before, where nothing folds). The
pointwise branch has no bias, which the norm would take away again; there is no drop path.
"""

from __future__ import annotations

from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import AveragePool, ConvShape, Pad, Sum, check_flag, normed_after_sum
from repblocks.errors import ConfigurationError

#: The branches with a BatchNorm of their own, by version.
_NORMED = {1: ("kxk", "pointwise", "identity"), 2: ("kxk",)}


@final
@register_block("qarepvgg")
class QARepVGGBlock(ConvBlock):
    """k x k with BatchNorm, 1 x 1 and identity without, and one BatchNorm of the sum."""

    decayed = ("branches.sum.identity.norm.weight",)

    @classmethod
    def build_branches(
        cls, shape: ConvShape, *, version: int = 2, use_average: bool = False
    ) -> nn.Module:
        """Return the branches of section 3.

        Args:
            shape: What the block replaces.
            version: 1 for a BatchNorm in each branch and one after their sum; 2 for k x k alone
                and one after the sum.
            use_average: Whether there is a k x k average, without BatchNorm, where there is an
                identity, as in YOLOv6.

        Raises:
            ConfigurationError: if there is no such version, or an argument is of another type.
        """
        if type(version) is not int or version not in _NORMED:
            raise ConfigurationError(
                f"version must be 1 (a norm in each branch) or 2 (of k x k alone), got {version!r}."
            )
        check_flag("use_average", use_average)
        branches = Sum({"kxk": shape.conv_norm(), "pointwise": shape.resized(1).conv_norm()})
        if shape.allows_identity:
            branches["identity"] = shape.identity_norm()
            if use_average:
                branches["average"] = _average(shape)
        return normed_after_sum(branches, shape, _NORMED[version])


def _average(shape: ConvShape) -> nn.Sequential:
    average = AveragePool(shape.kernel_size, shape.stride, shape.dilation)
    return nn.Sequential(Pad(shape.padding), average)
