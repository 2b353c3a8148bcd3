"""Maps that are convolutions in disguise: average pooling, padding, linear layers, scales.

Paradigm 7 is :func:`average_pooling`, paradigm 9 is :func:`linear_to_pointwise` and
:func:`pointwise_to_linear`, and the dirac kernel of paradigm 6a is ``AffineMap.identity``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from repblocks.algebra.affine import AffineMap, Lazy, embed
from repblocks.algebra.axis import Axis, torch_order
from repblocks.errors import NotFoldable, RepblocksError

CONV_CLASSES: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_PADS = {
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}
CONV_FUNCTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def average_pooling(channels: int, axes: Sequence[Axis], like: Tensor | None = None) -> AffineMap:
    """Return average pooling, in which padding counts, as a depthwise map.

    Args:
        channels: C.
        axes: The windows.
        like: A tensor of the dtype and device to compute in.
    """
    sizes = tuple(axis.size for axis in axes)
    reference = torch.ones(()) if like is None else like
    value = AffineMap.identity(channels)
    weight = Lazy(lambda: reference.new_full((channels, 1, *sizes), 1 / prod(sizes)))
    return replace(value, weight=weight, axes=tuple(axes))


def zero_padding(channels: int, axes: Sequence[Axis]) -> AffineMap:
    """Return zero padding, or cropping where it is negative, as a selection with padded axes."""
    return replace(AffineMap.identity(channels), axes=tuple(axes))


def padding_layer(pairs: Sequence[tuple[int, int]], mode: str = "zeros") -> nn.Module:
    """Return the layer that pads by ``(low, high)`` an axis."""
    sides: Any = tuple(torch_order(pairs))
    return _PADS[mode][len(pairs) - 1](sides).eval()


def padding(channels: int, axes: Sequence[Axis], mode: str) -> AffineMap:
    """Return padding of any mode as a selection with padded axes.

    Raises:
        NotFoldable: if it repeats values of the input unequally on both sides of an axis, which no
            layer does, or crops.
    """
    if mode != "zeros" and not all(axis.is_even for axis in axes):
        raise NotFoldable(f"Padding of mode {mode!r} that differs between the sides, or crops.")
    return replace(zero_padding(channels, axes), padding_mode=mode)


def scale(factor: Tensor) -> AffineMap:
    """Return the map that multiplies each channel by ``factor (C,)``: LayerScale, for one."""
    value = AffineMap.identity(factor.shape[0])
    return replace(value, weight=Lazy(lambda: factor.unsqueeze(1)))


def linear_to_pointwise(linear: nn.Linear, ndim: int = 2) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """Return the 1 x 1 convolution that does on channels what ``linear`` does on the last axis."""
    conv = CONV_CLASSES[ndim](
        linear.in_features,
        linear.out_features,
        1,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    _copy(linear, conv)
    return conv.train(linear.training)


def pointwise_to_linear(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> nn.Linear:
    """Return the linear layer that does on the last axis what ``conv`` does on channels.

    Raises:
        NotFoldable: if the convolution is not pointwise: a kernel larger than 1, a stride, padding
            or groups.
    """
    pads = any(conv.padding) if not isinstance(conv.padding, str) else False
    if any(k != 1 for k in (*conv.kernel_size, *conv.stride)) or pads or conv.groups != 1:
        raise NotFoldable(
            "Only a convolution with kernel size 1, stride 1, no padding and one group is a linear "
            f"layer, got {conv}."
        )
    linear = nn.Linear(
        conv.in_channels,
        conv.out_channels,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    _copy(conv, linear)
    return linear.train(conv.training)


def _copy(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            original = source.get_parameter(name)
            parameter.copy_(original.view_as(parameter))
            parameter.requires_grad_(original.requires_grad)


def dense_taps(value: AffineMap) -> AffineMap:
    """Return the same map with its dilated kernels written as dense ones with zeros."""
    if not value.axes:
        raise RepblocksError("A map without spatial axes has no taps to spread.")
    axes = tuple(axis.covering(axis.low, axis.high, 1) for axis in value.axes)
    weight = value.weight
    return replace(
        value,
        axes=axes,
        weight=None if weight is None else Lazy(lambda: embed(weight(), value.axes, axes)),
    )
