"""A small kernel whose taps lie apart, at the centre of a large one.

A kernel of k taps with dilation r reads ``r * (k - 1) + 1`` positions: it is a kernel of that size
with ``r - 1`` zeros between its taps.

Source:
    Ding et al., UniRepLKNet, CVPR 2024, section 3.1, https://arxiv.org/abs/2311.15599
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repblocks.algebra.axis import Axis
from repblocks.branches.shape import ConvShape
from repblocks.errors import ConfigurationError


def dilated(shape: ConvShape, kernel_size: Sequence[int], dilation: Sequence[int]) -> ConvShape:
    """Return the shape with a kernel in it whose taps are those of its own that lie apart.

    Args:
        shape: Of the large kernel.
        kernel_size: Taps on each axis.
        dilation: Taps of the large kernel between two of them, on each axis.

    Raises:
        ConfigurationError: if the taps do not all lie on some of the large kernel's, around its
            centre.
    """
    padding, dilations = [], []
    for size, step, axis in zip(kernel_size, dilation, shape.axes, strict=True):
        reach = step * (size - 1) + 1
        missing = axis.size - reach
        if missing < 0 or missing % 2:
            raise ConfigurationError(
                f"kernel_size must be {reach} or an even number larger for {size} taps with "
                f"dilation {step} to lie at its centre, got {axis.size}; choose fewer taps, or a "
                "smaller dilation."
            )
        side = missing // 2 * axis.dilation
        padding.append((axis.low - side, axis.high - side))
        dilations.append(Axis(size, dilation=step * axis.dilation).dilation)
    return replace(
        shape, kernel_size=tuple(kernel_size), padding=tuple(padding), dilation=tuple(dilations)
    )
