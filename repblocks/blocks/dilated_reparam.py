"""Dilated reparam: a large kernel beside small ones with dilation, each with its BatchNorm.

Source:
    Ding et al., UniRepLKNet, CVPR 2024, section 3.1, https://arxiv.org/abs/2311.15599
    Official code: https://github.com/AILab-CVC/UniRepLKNet

The default kernel sizes and dilations are those published for kernels of 5 to 17. Larger ones have
a row of the same proportions (5 with 1, the largest with 2, and 3 with about a half, five eighths
and seven eighths of the radius), one of 3 has a single tap, one of 1 nothing beside it: these are
ours, as the official code refuses them.

Differences: any stride, padding, dilation, groups and channels, where the official block is
depthwise with stride 1 (``groups=C`` gives it); no BatchNorm follows the sum, which the official
network adds after the block; ``post_norm`` puts one there, in the place of one in each branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, Sum, check_flag, dilated, normed_after_sum
from repblocks.errors import ConfigurationError

#: Kernel size and dilation of each small kernel, by the size of the large one.
PUBLISHED: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


@final
@register_block("dilated_reparam")
class DilatedReparamBlock(ConvBlock):
    """k x k, and smaller kernels with dilation inside it."""

    @classmethod
    def build_branches(
        cls,
        shape: ConvShape,
        *,
        kernel_sizes: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        post_norm: bool = False,
    ) -> nn.Module:
        """Return the branches of section 3.1.

        On an axis where the large kernel is too small for a default, that is left with as many
        taps as fit; on an axis of one tap, every small kernel has one.

        Args:
            shape: What the block replaces.
            kernel_sizes: Odd numbers of taps of the small kernels; None for the defaults.
            dilations: As many distances between their taps, in taps of the large kernel; None for
                the defaults.
            post_norm: Whether one BatchNorm follows the sum, and the branches have none.

        Raises:
            ConfigurationError: if the large kernel is even, only one of the lists is there, they
                have different lengths, or a small kernel does not fit in the large one.
        """
        check_flag("post_norm", post_norm)
        if any(size % 2 == 0 for size in shape.kernel_size):
            raise ConfigurationError(
                "kernel_size must be odd for dilated kernels to lie at its centre, got "
                f"{shape.kernel_size}."
            )
        branches = Sum({"large": shape.conv_norm()})
        if max(shape.kernel_size) > 1:
            for size, dilation in _small_kernels(shape, kernel_sizes, dilations):
                taps = [
                    _fitting(size, dilation, k, kernel_sizes is None) for k in shape.kernel_size
                ]
                inner = dilated(shape, taps, [dilation] * shape.ndim)
                branches[f"k{size}_d{dilation}"] = inner.conv_norm()
        return normed_after_sum(branches, shape) if post_norm else branches


def _small_kernels(
    shape: ConvShape, kernel_sizes: Sequence[int] | None, dilations: Sequence[int] | None
) -> Sequence[tuple[int, int]]:
    if kernel_sizes is None and dilations is None:
        return default_kernels(max(shape.kernel_size))
    sizes = _checked("kernel_sizes", kernel_sizes)
    steps = _checked("dilations", dilations)
    if len(sizes) != len(steps):
        raise ConfigurationError(
            "kernel_sizes and dilations must have one value for each small kernel, as many in "
            f"each, got {len(sizes)} and {len(steps)}."
        )
    if any(size % 2 == 0 for size in sizes):
        raise ConfigurationError(
            f"kernel_sizes must be odd, to lie at the centre of the large kernel, got {sizes}."
        )
    pairs = list(zip(sizes, steps, strict=True))
    if len(set(pairs)) < len(pairs):
        raise ConfigurationError(
            f"kernel_sizes and dilations must name each small kernel once, got {sizes} and {steps}."
        )
    return pairs


def default_kernels(kernel_size: int) -> Sequence[tuple[int, int]]:
    """Return kernel size and dilation of each small kernel beside an odd large one."""
    if kernel_size <= 3:
        return ((1, 1),) if kernel_size == 3 else ()
    if kernel_size in PUBLISHED:
        return PUBLISHED[kernel_size]
    radius = kernel_size // 2
    spread = [(3, radius * eighths // 8) for eighths in (4, 5, 7)]
    return ((5, 1), (radius | 1, 2), *spread)


def _fitting(size: int, dilation: int, most: int, may_shrink: bool) -> int:
    """Return the taps of a small kernel on an axis where the large one has ``most``."""
    if most == 1:
        return 1
    if may_shrink:
        while dilation * (size - 1) + 1 > most:
            size -= 2
    return size


def _checked(name: str, values: Sequence[int] | None) -> list[int]:
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    found = list(values) if is_list and values is not None else None
    if found is None or any(type(value) is not int or value < 1 for value in found):
        raise ConfigurationError(
            f"{name} must be a list of whole numbers of at least 1, one for each small kernel, and "
            f"kernel_sizes and dilations must both be given or both left out, got {values!r}."
        )
    return found
