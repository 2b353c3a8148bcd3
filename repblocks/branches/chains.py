"""A kernel as a series of smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from repblocks.branches.nodes import Pad
from repblocks.branches.shape import ConvShape


def small_sizes(shape: ConvShape) -> list[tuple[int, ...]]:
    """Return kernel sizes of at most 3 taps an axis whose full convolution has the shape's size.

    An even size ends in a kernel of 2 taps; an axis that needs fewer kernels than others gets
    kernels of 1 tap at the end.
    """
    chains = [[3] * ((size - 1) // 2) + [2] * ((size - 1) % 2) for size in shape.kernel_size]
    length = max(1, *map(len, chains))
    filled = [chain + [1] * (length - len(chain)) for chain in chains]
    return list(zip(*filled, strict=True))


def in_series(
    shape: ConvShape, sizes: Sequence[tuple[int, ...]], channels: Sequence[int]
) -> list[ConvShape]:
    """Return the shapes of unpadded kernels, run one after the other, that read what one reads.

    All padding belongs before the first. The stride is taken by the last one with more than one
    tap, after which no kernel reads positions that nothing needs.

    Args:
        shape: Of the one kernel.
        sizes: Kernel sizes; on each axis, sizes minus 1 add up to the shape's size minus 1.
        channels: Between two kernels, one number fewer than there are kernels.
    """
    ends = [shape.in_channels, *channels, shape.out_channels]
    ones = (1,) * shape.ndim
    extended = [number for number, size in enumerate(sizes) if max(size) > 1]
    strided = extended[-1] if extended else 0
    unpadded = shape.unpadded()
    return [
        replace(
            unpadded,
            in_channels=ends[number],
            out_channels=ends[number + 1],
            kernel_size=size,
            stride=shape.stride if number == strided else ones,
        )
        for number, size in enumerate(sizes)
    ]


def padded_series(
    shape: ConvShape,
    sizes: Sequence[tuple[int, ...]],
    channels: Sequence[int],
    bias: bool,
) -> nn.Sequential:
    """Return all padding, and then the convolutions of :func:`in_series`.

    Where the input is padded, a first convolution with a bias gives its bias, as its kernel does on
    zeros; zeros after it would be something else, and no kernel could be equal to it.
    """
    series = nn.Sequential()
    series.add_module("pad", Pad(shape.padding))
    for number, part in enumerate(in_series(shape, sizes, channels)):
        series.add_module(f"conv{number}", part.conv(bias))
    return series
