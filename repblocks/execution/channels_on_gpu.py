"""Products and maps of channels by Triton, where an image is on a GPU and its channels lie last.

Shapes: x ``(N, C, H, W)`` in channels_last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repblocks.execution import triton_kernels

#: Programs that share a product, and parts of it: enough to fill a large GPU a few times.
_PROGRAMS, _PARTS = 528, 264
#: Channels of a program that multiplies images, or maps one, and positions of either.
_MULTIPLIED, _MAPPED, _POSITIONS = 64, 128, 64
#: Channels at which libraries are faster.
_MOST_CHANNELS = 512


def serves(*images: Tensor) -> bool:
    """Tell whether there are kernels for images; none of them can be differentiated."""
    return not torch.is_grad_enabled() and all(map(_suits, images))


def _suits(x: Tensor) -> bool:
    if x.ndim != 4 or x.dtype is not torch.bfloat16 or not triton_kernels.suit(x):
        return False
    is_last = x.is_contiguous(memory_format=torch.channels_last) and x.shape[1] > 1
    is_known = is_last and x.shape[1] <= _MOST_CHANNELS
    return is_known and triton_kernels.loaded("triton_channels") is not None


def products(g: Tensor, x: Tensor, shift: Tensor, *, both: bool = False) -> Tensor:
    """Return the sums of products of channels, ``(O, C + 1)`` in float32; the last are those of g.

    Args:
        g: With O channels.
        x: With C channels.
        shift: ``(C,)``, which is taken from x.
        both: Whether it is taken from g, too.
    """
    outputs, channels = g.shape[1], x.shape[1]
    positions = x.numel() // channels
    block_o, block_c = _block(outputs, _MULTIPLIED), _block(channels, _MULTIPLIED)
    tiles = -(-outputs // block_o) * -(-channels // block_c)
    programs = min(-(-positions // _POSITIONS), max(1, _PROGRAMS // tiles), _PARTS)
    parts = shift.new_empty(programs, outputs, channels + 1)
    _kernel("products")[(programs, tiles)](
        *(g, x, shift, parts, positions, outputs, channels),
        *(both, _POSITIONS, block_o, block_c),
    )
    return parts.sum(0)


def mapped(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    shift: Tensor | None = None,
    other: Tensor | None = None,
    factors: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Return ``weight (x - shift) + bias + other``, ``(N, O, H, W)`` like x.

    Args:
        x: With C channels.
        weight: ``(O, C)`` in float32.
        bias: ``(O,)`` in float32.
        shift: ``(C,)`` in float32.
        other: ``(N, O, H, W)``, of any layout.
        factors: Of the weight and of the bias.
    """
    outputs, channels = weight.shape
    y = torch.empty(
        *(len(x), outputs, *x.shape[2:]),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    if other is not None:
        other = other.contiguous(memory_format=torch.channels_last)
    block_o, positions = _block(outputs, _MAPPED), x.numel() // channels
    grid = (-(-positions // _POSITIONS) * -(-outputs // block_o),)
    _kernel("mapped")[grid](
        *(x, x if shift is None else shift, weight, bias, x if other is None else other, y),
        *(positions, channels, outputs, *weight.stride(), *bias.stride(), *factors),
        *(shift is not None, other is None, _POSITIONS, block_o, _block(channels, _MULTIPLIED)),
    )
    return y


def _block(channels: int, most: int) -> int:
    """Return the channels of a program: no fewer than a tensor core takes."""
    return min(most, max(16, triton_kernels.power(channels)))


def _kernel(name: str) -> Any:
    return getattr(triton_kernels.loaded("triton_channels"), name)
