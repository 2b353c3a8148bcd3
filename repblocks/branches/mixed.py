"""A kernel and smaller ones of other forms in it, without norms, as suous' RepNeXt mixes them.

Source:
    Zhao et al., RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization, 2024,
    section 3, https://arxiv.org/abs/2406.16004
    Official code: https://github.com/suous/RepNeXt
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from torch import nn

from repblocks.algebra.axis import Axis
from repblocks.branches.dilated import dilated
from repblocks.branches.nodes import Sum
from repblocks.branches.shape import ConvShape
from repblocks.errors import ConfigurationError


def mixed_kernels(shape: ConvShape) -> Sum:
    """Return the branches of a kernel, each without bias and norm.

    For 3 taps: k x k; the kernels that have both 1 and 3 taps (1 x 3 and 3 x 1), in their place a
    series of one kernel for each axis if there is a stride; and the corners, 2 x 2 with dilation 2.
    For more: k x k; the kernels that have both k - 2 and k - 4 taps; and the series of one kernel
    of k taps, and of k - 2, for each axis. An axis of one tap has one in every branch.

    Args:
        shape: With odd kernel sizes.

    Raises:
        ConfigurationError: if a kernel size is even.
    """
    if any(size % 2 == 0 for size in shape.kernel_size):
        raise ConfigurationError(
            f"kernel_size must be odd for smaller kernels to lie at its centre, got "
            f"{shape.kernel_size}."
        )
    branches = Sum({"square": shape.conv()})
    largest = max(shape.kernel_size)
    if largest == 3:
        if max(shape.stride) > 1:
            branches["series3"] = _series(shape)
        else:
            _add_oblong(branches, shape, 0)
        branches["corners"] = _corners(shape)
    elif largest > 3:
        _add_oblong(branches, shape, 2)
        for less in (0, 2):
            branches[f"series{largest - less}"] = _series(_smaller(shape, less))
    return branches


def _smaller(shape: ConvShape, less: int) -> ConvShape:
    return shape.resized(tuple(max(1, size - less) for size in shape.kernel_size))


def _add_oblong(branches: Sum, shape: ConvShape, less: int) -> None:
    """Add the kernels with both ``less`` taps fewer than the largest and two fewer than that."""
    for short in product((0, 1), repeat=shape.ndim):
        size = tuple(
            max(1, k - less - 2 * is_short)
            for k, is_short in zip(shape.kernel_size, short, strict=True)
        )
        name = "x".join(map(str, size))
        wide = {k for k, whole in zip(size, shape.kernel_size, strict=True) if whole > 1}
        if len(wide) > 1 and name not in branches:
            branches[name] = shape.resized(size).conv()


def _series(shape: ConvShape) -> nn.Sequential:
    """Return one kernel for each axis of more than one tap, with the stride of its axis."""
    series = nn.Sequential()
    channels = shape.in_channels
    # One of a single tap, too, may have to skip, to pad or to crop positions.
    trivial = Axis(1)
    axes = [number for number, axis in enumerate(shape.axes) if axis != trivial] or [0]
    for axis in reversed(axes):
        is_last = axis == axes[0]
        out_channels = shape.out_channels if is_last else channels

        def kept(values: tuple[int, ...], other: int, axis: int = axis) -> tuple[int, ...]:
            return tuple(value if i == axis else other for i, value in enumerate(values))

        part = replace(
            shape,
            in_channels=channels,
            out_channels=out_channels,
            kernel_size=kept(shape.kernel_size, 1),
            stride=kept(shape.stride, 1),
            padding=tuple(pair if i == axis else (0, 0) for i, pair in enumerate(shape.padding)),
            dilation=kept(shape.dilation, 1),
        )
        series.add_module(f"axis{axis}", part.conv())
    return series


def _corners(shape: ConvShape) -> nn.Sequential:
    taps = [min(size, 2) for size in shape.kernel_size]
    return dilated(shape, taps, [2] * shape.ndim).conv()
