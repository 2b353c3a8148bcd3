"""The moments of depthwise windows by Triton, where it is installed and the input is on a GPU.

As :mod:`repblocks.execution.compiled` for the CPU.

Shapes: x ``(N, C, H, W)``, K taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from repblocks.algebra.axis import Axis
from repblocks.execution import triton_kernels

#: Programs that share the products of all channels: enough to fill a large GPU a few times.
_PROGRAMS = 1024
#: Sums that a thread can hold.
_PAIRS = 48
#: Blocks that a launch can have on all axes but its first.
_MOST_BLOCKS = 2**16 - 1
#: Larger windows would need more registers than there are.
_MOST_TAPS = 32


def window_products(
    x: Tensor, centre: Tensor, axes: Sequence[Axis]
) -> tuple[Tensor, Tensor] | None:
    """Return the sums of the products of taps ``(C, K, K)``, and of the images ``(1, C, H, W)``.

    Args:
        x: In float32, bfloat16 or float16.
        centre: ``(C,)`` in float32, taken from the input first.
        axes: Where the taps read; zeros outside.

    Returns:
        Both in float32, or None where there are no kernels.
    """
    kernels = _kernels_for(x, axes)
    if kernels is None:
        return None
    x, centre = x.detach(), centre.contiguous()
    images, channels, height, width = x.shape
    block_c, block_p = (32, 4) if _is_last(x) else (1, 128)
    rows, columns = _outputs(x, axes)
    across = -(-channels // block_c)
    parts = max(1, min(-(-rows * columns // block_p) * images, _PROGRAMS // across))
    taps, found = prod(axis.size for axis in axes), []
    for first, last in _rows_of_pairs(taps):
        pairs = sum(taps - tap for tap in range(first, last))
        part = x.new_empty(parts, channels, pairs, dtype=torch.float32)
        kernels.products[(across, parts)](
            *(x, centre, part, images, channels, height, width, rows * columns, columns),
            *(*x.stride(), *_geometry(axes), first, last, block_c, block_p),
        )
        found.append(part.sum(0, dtype=torch.float64))
    gram = torch.cat(found, 1).float()[:, _numbers(taps, x.device)]
    return gram, sum_of_images(x, centre)


def sum_of_images(x: Tensor, centre: Tensor) -> Tensor:
    """Return the sum of all images less the centre, ``(1, C, H, W)``, of what kernels serve."""
    images, channels, height, width = x.shape
    total = x.new_empty(1, channels, height, width, dtype=torch.float32)
    block_c, block_p = _blocks(x)
    grid = (-(-channels // block_c), -(-height * width // block_p))
    _kernels().summed[grid](
        *(x, centre, total, images, channels, height * width, width, *x.stride()),
        *(block_c, block_p),
    )
    return total


def serves(x: Tensor, axes: Sequence[Axis]) -> bool:
    """Tell whether there are kernels for an input ``(N, C, *spatial)`` and its windows."""
    return _kernels_for(x, axes) is not None


def _rows_of_pairs(taps: int) -> Iterator[tuple[int, int]]:
    """Give ranges of first taps whose pairs a program can hold in its registers."""
    first = 0
    while first < taps:
        last, pairs = first + 1, taps - first
        while last < taps and pairs + taps - last <= _PAIRS:
            pairs, last = pairs + taps - last, last + 1
        yield first, last
        first = last


@cache
def _numbers(taps: int, device: torch.device) -> Tensor:
    """Return the number of each pair of taps ``(K, K)``, counted over those in order."""
    first, second = torch.triu_indices(taps, taps)
    numbers = torch.empty(taps, taps, dtype=torch.int64)
    numbers[first, second] = numbers[second, first] = torch.arange(len(first))
    return numbers.to(device)


def window_gradient(
    x: Tensor, weight: Tensor, image: Tensor, of_x: Tensor, axes: Sequence[Axis]
) -> Tensor | None:
    """Return ``of_x + image +`` what a symmetric weight makes of the taps, written back.

    Args:
        x: In float32, bfloat16 or float16.
        weight: ``(C, K, K)`` in float32.
        image: ``(1, C, H, W)`` in float32, added to each image.
        of_x: ``(N, C, H, W)``.
        axes: Where the taps read; zeros outside.

    Returns:
        It in the dtype and the layout of x, or None where there are no kernels.
    """
    kernels = _kernels_for(x, axes)
    if kernels is None:
        return None
    x = x.detach()
    total = torch.empty_like(x)
    if total.stride() != x.stride():
        x = x.contiguous()
        total = torch.empty_like(x)
    images, channels, height, width = x.shape
    (top, bottom), (left, right) = inner = _inner(x, axes)
    block_c, block_p = _blocks(x)
    across, strides = -(-channels // block_c), (*x.stride(), *of_x.stride())
    covered = (bottom - top) * (right - left)
    if covered:
        kernels.inner_gradient[(across, -(-covered // block_p), images)](
            *(x, _lags(weight, axes), image.contiguous(), of_x, total, channels, height, width),
            *(*strides, top, left, bottom, right, *(axis.size for axis in axes)),
            *(*(axis.dilation for axis in axes), block_c, block_p),
        )
    if covered < height * width:
        kernels.gradient[(across, -(-(height * width - covered) // block_p), images)](
            *(x, weight.contiguous(), image.contiguous(), of_x, total, channels, height, width),
            *(*_outputs(x, axes), *strides, *chain(*inner), *_geometry(axes), block_c, block_p),
        )
    return total


def _inner(x: Tensor, axes: Sequence[Axis]) -> list[tuple[int, int]]:
    """Return from where to where all windows that read a position are outputs; none at a stride."""
    found = []
    for size, outputs, axis in zip(x.shape[2:], _outputs(x, axes), axes, strict=True):
        first, last = max(0, axis.extent - 1 - axis.low), min(size, outputs - axis.low)
        found.append((first, last) if first < last and axis.stride == 1 else (size, size))
    is_empty = any(first == last for first, last in found)
    return [(size, size) for size in x.shape[2:]] if is_empty else found


def _lags(weight: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Return the sums of weights ``(C, K, K)`` of taps at a distance, ``(C, 2R - 1, 2S - 1)``."""
    (r, s), channels = [axis.size for axis in axes], len(weight)
    lags = weight.new_zeros(channels, (2 * r - 1) * (2 * s - 1))
    return lags.index_add_(1, _distances(r, s, weight.device), weight.reshape(channels, -1))


@cache
def _distances(r: int, s: int, device: torch.device) -> Tensor:
    """Return which distance each pair of taps has, ``(K * K,)``."""
    row, column = torch.arange(r * s, device=device) // s, torch.arange(r * s, device=device) % s
    down, across = row[None] - row[:, None] + r - 1, column[None] - column[:, None] + s - 1
    return (down * (2 * s - 1) + across).flatten()


def _kernels_for(x: Tensor, axes: Sequence[Axis]) -> ModuleType | None:
    is_small = prod(axis.size for axis in axes) <= _MOST_TAPS
    if not is_small or x.ndim != 4 or len(x) > _MOST_BLOCKS or not triton_kernels.suit(x):
        return None
    return _kernels()


def _kernels() -> Any:
    return triton_kernels.loaded("triton_windows")


def _geometry(axes: Sequence[Axis]) -> list[int]:
    """Return how the kernels are told where the taps read."""
    parts = [(axis.size, axis.low, axis.stride, axis.dilation) for axis in axes]
    return [value for pair in zip(*parts, strict=True) for value in pair]


def _outputs(x: Tensor, axes: Sequence[Axis]) -> list[int]:
    sizes = zip(x.shape[2:], axes, strict=True)
    return [(size + axis.slack) // axis.stride + 1 for size, axis in sizes]


def _is_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and not x.is_contiguous()


def _blocks(x: Tensor) -> tuple[int, int]:
    """Return channels and positions of one program."""
    block_c, block_p = (32, 16) if _is_last(x) else (1, 512)
    while x.shape[2] * x.shape[3] > block_p * _MOST_BLOCKS:
        block_p *= 2
    return block_c, block_p
