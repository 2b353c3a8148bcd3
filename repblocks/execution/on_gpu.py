"""The moments of depthwise windows by Triton, where it is installed and the input is on a GPU.

As :mod:`repblocks.execution.compiled` for the CPU.

Shapes: x ``(N, C, H, W)``, K taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
#: Images that share the weights of a border.
_IMAGES = 8
#: Larger windows would need more registers than there are.
_MOST_TAPS = 32


def window_moments(
    x: Tensor, centre: Tensor, axes: Sequence[Axis], share: Tensor, border: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return mean ``(C, K)``, less the offset, and covariance ``(C, K, K)`` of the taps.

    Args:
        x: In float32, bfloat16 or float16.
        centre: ``(C,)`` in float32, taken from the input first.
        axes: Where the taps read; zeros outside.
        share: ``(1, K)`` in float32, the mean of the mask of the image.
        border: ``(1, K, K)`` in float32, the covariance of that.

    Returns:
        Both in float32, or None where there are no kernels.
    """
    kernels = _kernels_for(x, axes)
    if kernels is None:
        return None
    x, centre = x.detach(), centre.contiguous()
    images, channels, height, width = x.shape
    rows, columns = _outputs(x, axes)
    taps, parts = prod(axis.size for axis in axes), _products(kernels, x, centre, axes)
    mean, covariance = centre.new_empty(channels, taps), centre.new_empty(channels, taps, taps)
    block_k = max(16, triton_kernels.power(taps))
    kernels.moments[(channels,)](
        *(parts, len(parts), sum_of_images(x, centre), centre, share, border, mean, covariance),
        *(channels, height, width, rows * columns, columns, images * rows * columns),
        *(*_geometry(axes), block_k, 2048 // block_k**2, max(16, 2048 // block_k)),
    )
    return mean, covariance


def _products(kernels: ModuleType, x: Tensor, centre: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Return sums of the products of all pairs of taps, ``(parts, C, pairs)``."""
    images, channels, height, width = x.shape
    block_c, block_p = (64, 4) if _is_last(x) else (1, 128)
    rows, columns = _outputs(x, axes)
    across, taps = -(-channels // block_c), prod(axis.size for axis in axes)
    count = max(1, min(-(-rows * columns // block_p) * images, _PROGRAMS // across))
    parts = centre.new_empty(count, channels, taps * (taps + 1) // 2)
    for first, last in _rows_of_pairs(taps):
        kernels.products[(across, count)](
            *(x, centre, parts, images, channels, height, width, rows * columns, columns),
            *(*x.stride(), *_geometry(axes), first, last, block_c, block_p),
        )
    return parts


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


def window_gradient(
    x: Tensor,
    mean: Tensor,
    of_moments: tuple[Tensor, Tensor],
    of_x: Tensor,
    axes: Sequence[Axis],
    factor: float,
) -> Tensor | None:
    """Return ``of_x`` and the gradient of the taps' mean and covariance, written back.

    Args:
        x: In float32, bfloat16 or float16.
        mean: ``(C, K)`` in float32, of what the taps read.
        of_moments: The gradients of the mean, ``(C, K)``, and of the covariance, ``(C, K, K)``, in
            float32; the latter is symmetric.
        of_x: ``(N, C, H, W)``.
        axes: Where the taps read; zeros outside.
        factor: One over the number of windows.

    Returns:
        It in the dtype and the layout of x, or None where there are no kernels.
    """
    kernels = _kernels_for(x, axes) and triton_kernels.loaded("triton_window_gradients")
    if kernels is None:
        return None
    x = x.detach()
    total = torch.empty_like(x)
    if total.stride() != x.stride():
        x = x.contiguous()
        total = torch.empty_like(x)
    images, channels, height, width = x.shape
    (of_mean, of_covariance), sizes = of_moments, [axis.size for axis in axes]
    lags = x.new_empty(channels, prod(2 * size - 1 for size in sizes) + 1, dtype=torch.float32)
    biases, steps = torch.empty_like(mean), of_covariance.stride()[:2]
    kernels.weights[(channels,)](
        *(mean.contiguous(), of_mean, of_covariance, lags, biases, *of_mean.stride(), *steps),
        *(factor, *sizes, triton_kernels.power(prod(sizes)), triton_kernels.power(lags.shape[1])),
    )
    (top, bottom), (left, right) = inner = _inner(x, axes)
    block_c, block_p = _blocks(x)
    across, strides = -(-channels // block_c), (*x.stride(), *of_x.stride())
    covered = (bottom - top) * (right - left)
    if covered:
        kernels.inner_gradient[(across, -(-covered // block_p), images)](
            *(x, lags, of_x, total, channels, height, width),
            *(*strides, top, left, bottom, right, *sizes),
            *(*(axis.dilation for axis in axes), block_c, block_p),
        )
    if covered < height * width:
        block_n = min(_IMAGES, triton_kernels.power(images))
        block_p = max(1, block_p // block_n)
        while height * width > block_p * _MOST_BLOCKS:
            block_p *= 2
        blocks = -(-(height * width - covered) // block_p), -(-images // block_n)
        kernels.gradient[(across, *blocks)](
            *(x, of_covariance, biases, of_x, total, images, channels, height, width),
            *(*_outputs(x, axes), *strides, *chain(*inner), *steps, factor, *_geometry(axes)),
            *(block_n, block_c, block_p),
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


def _kernels_for(x: Tensor, axes: Sequence[Axis]) -> ModuleType | None:
    is_small = prod([axis.size for axis in axes]) <= _MOST_TAPS
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
    block_c, block_p = (32, 32) if _is_last(x) else (1, 512)
    while x.shape[2] * x.shape[3] > block_p * _MOST_BLOCKS:
        block_p *= 2
    return block_c, block_p
