"""Nodes that act on each channel alone: scales, fixed filters, and repetition of channels.

Shapes: C channels, O = m * C filters, ``*k`` taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm, pi

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap, Lazy, tensor_for
from repblocks.algebra.axis import Axis
from repblocks.algebra.rules import rule
from repblocks.algebra.serial import compose
from repblocks.algebra.special import CONV_FUNCTIONS, scale
from repblocks.branches.shape import ConvShape


class Scale(nn.Module):
    """A factor for each channel, and a summand if wished.

    Args:
        channels: C.
        start: The first value of the factors.
        bias: Whether there is a summand; it starts from 0.
    """

    def __init__(self, channels: int, start: float = 1.0, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(start)))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``(N, C, *spatial)``."""
        places = (-1, *(1,) * (x.ndim - 2))
        y = x * self.weight.view(places)
        return y if self.bias is None else y + self.bias.view(places)


@rule(Scale)
def _scale(module: Scale, value: AffineMap, like: Tensor | None) -> AffineMap:
    weight, bias = module.weight, module.bias
    own = replace(
        AffineMap.identity(value.out_channels),
        weight=Lazy(lambda: tensor_for(weight, like).unsqueeze(1)),
        bias=None if bias is None else Lazy(lambda: tensor_for(bias, like)),
    )
    return compose(own, value)


class Negate(nn.Module):
    """The negative of the input, for a difference as a sum."""

    def forward(self, x: Tensor) -> Tensor:
        """Negate ``(N, C, *spatial)``."""
        return -x


@rule(Negate)
def _negate(module: Negate, value: AffineMap, like: Tensor | None) -> AffineMap:
    del module
    minus = torch.full((value.out_channels,), -1.0)
    return compose(scale(minus if like is None else minus.to(like)), value)


class Shift(nn.Module):
    """A summand for each channel, which starts from 0.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Shift the channels of ``(N, C, *spatial)``."""
        return x + self.bias.view(-1, *(1,) * (x.ndim - 2))


@rule(Shift)
def _shift(module: Shift, value: AffineMap, like: Tensor | None) -> AffineMap:
    bias = module.bias
    own = replace(AffineMap.identity(value.out_channels), bias=Lazy(lambda: tensor_for(bias, like)))
    return compose(own, value)


class FixedFilters(nn.Module):
    """Depthwise filters that are not trained, without padding.

    They are kept as whole numbers, so that they are exact in every dtype, and neither in the state
    dict nor among the parameters.

    Args:
        taps: Whole numbers ``(O, *k)``; the filters of an input channel stand together.
        shape: Gives channels, stride and dilation.
        period: If it is not 0, a tap ``t`` stands for ``cos(2 pi t / period)``.
    """

    taps: Tensor

    def __init__(self, taps: Tensor, shape: ConvShape, period: int = 0) -> None:
        super().__init__()
        sizes = tuple(taps.shape[1:])
        self.channels, self.period = shape.in_channels, period
        none = (0,) * shape.ndim
        self.axes = tuple(map(Axis, sizes, shape.stride, none, none, shape.dilation))
        self.register_buffer("taps", taps.unsqueeze(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, O, *spatial)``."""
        stride = [axis.stride for axis in self.axes]
        dilation = [axis.dilation for axis in self.axes]
        weight = self.weight(x)
        return CONV_FUNCTIONS[len(stride)](x, weight, None, stride, 0, dilation, self.channels)

    def weight(self, like: Tensor) -> Tensor:
        """Return the filters ``(O, 1, *k)`` in the dtype of ``like``."""
        if not self.period:
            return self.taps.to(like)
        wide = self.taps.to(torch.promote_types(like.dtype, torch.float32))
        return torch.cos(wide * (2 * pi / self.period)).to(like)

    def extra_repr(self) -> str:
        """Show the windows."""
        return f"{self.channels}, {len(self.taps)}, {self.axes}"


@rule(FixedFilters)
def _fixed_filters(module: FixedFilters, value: AffineMap, like: Tensor | None) -> AffineMap:
    copies = module.taps.shape[0] // module.channels
    index = torch.arange(module.channels).repeat_interleave(copies).unsqueeze(1)
    reference = torch.empty(0, device=module.taps.device) if like is None else like
    own = AffineMap(
        module.channels, index, Lazy(lambda: module.weight(reference)), None, module.axes
    )
    return compose(own, value)


class RepeatChannels(nn.Module):
    """The channels of each group, again and again until there are so many.

    Args:
        in_channels: C.
        out_channels: O.
        groups: Divides both.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.in_width, self.out_width = in_channels // groups, out_channels // groups
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, O, *spatial)``."""
        return x.index_select(1, self._order().to(x.device))

    def _order(self) -> Tensor:
        channels = torch.arange(self.out_channels, device="cpu")
        group, place = channels // self.out_width, channels % self.out_width
        return group * self.in_width + place % self.in_width

    def extra_repr(self) -> str:
        """Show the channels of a group."""
        return f"{self.in_width}, {self.out_width}, {self.out_channels}"


@rule(RepeatChannels)
def _repeat_channels(module: RepeatChannels, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    return value.reordered(module._order())


def cosine_filters(shape: ConvShape) -> FixedFilters:
    """Return the basis of a cosine transform along one axis of each output channel's kernel.

    Channel ``i`` of those of an axis of k taps has the taps ``cos(pi (t + 1/2) (i + 1) / k)``, the
    same at all positions of the other axes. The axes with more than one tap share the channels.

    Args:
        shape: Without padding; its input channels are those that are filtered.

    Source:
        Hu et al., OREPA, CVPR 2022, section 3.3 (frequency prior), https://arxiv.org/abs/2204.00826
    """
    sizes, channels = shape.kernel_size, shape.in_channels
    axes = [axis for axis, size in enumerate(sizes) if size > 1] or [0]
    common = lcm(*sizes)
    number = torch.arange(channels)
    share = number * len(axes) // channels
    taps = torch.zeros(channels, *sizes, dtype=torch.int64)
    for place, axis in enumerate(axes):
        own = number[share == place]
        frequency = (own - own[:1] + 1).view(-1, *(1,) * len(sizes))
        phase = 2 * torch.arange(sizes[axis]) + 1
        phase = phase.view(-1, *(1,) * (len(sizes) - 1 - axis))
        taps[own] = (frequency * phase * (common // sizes[axis])) % (4 * common)
    return FixedFilters(taps, shape, 4 * common)


def sobel_filters(shape: ConvShape, axis: int) -> FixedFilters:
    """Return the difference ``[1, 0, -1]`` along an axis, smoothed by ``[1, 2, 1]`` along others.

    Args:
        shape: Without padding, 3 taps on the axis, 1 or 3 on the others; its input channels are
            those that are filtered.
        axis: Which axis.
    """
    lines = [(1, 0, -1) if number == axis else (1, 2, 1) for number in range(shape.ndim)]
    return _same_filters(_outer(shape, lines), shape)


def laplacian_filters(shape: ConvShape) -> FixedFilters:
    """Return the sum of the second differences ``[1, -2, 1]`` along the axes of 3 taps.

    Args:
        shape: Without padding, 1 or 3 taps on each axis; its input channels are those that are
            filtered.
    """
    axes = [axis for axis, size in enumerate(shape.kernel_size) if size == 3]
    lines = [[(1, -2, 1) if n == axis else (0, 1, 0) for n in range(shape.ndim)] for axis in axes]
    return _same_filters(torch.stack([_outer(shape, line) for line in lines]).sum(0), shape)


def _outer(shape: ConvShape, lines: Sequence[tuple[int, ...]]) -> Tensor:
    """Return the outer product of a line on each axis, ``(*k)``; an axis of 1 tap has none."""
    taps = torch.ones(shape.kernel_size, dtype=torch.int64)
    for axis, line in enumerate(lines):
        if shape.kernel_size[axis] == len(line):
            taps = taps * torch.tensor(line).view(-1, *(1,) * (shape.ndim - 1 - axis))
    return taps


def _same_filters(taps: Tensor, shape: ConvShape) -> FixedFilters:
    return FixedFilters(taps.expand(shape.in_channels, *taps.shape).clone(), shape)
