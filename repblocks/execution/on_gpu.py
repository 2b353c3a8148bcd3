"""The moments of depthwise windows by Triton, where it is installed and the input is on a GPU.

As :mod:`repblocks.execution.compiled` for the CPU. Nothing here imports Triton before such an input
comes; where it is missing, or cannot build its kernels, torch does the work.

Shapes: x ``(N, C, H, W)``, K taps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from math import prod
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter

from repblocks.algebra.axis import Axis

_log = logging.getLogger(__name__)

#: Devices that the kernels run on; torch calls those of AMD so, too.
DEVICES = ("cuda",)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Programs that share the products of all channels: enough to fill a large GPU a few times.
_PROGRAMS = 1024
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
    taps = prod(axis.size for axis in axes)
    padded_taps = 16 if taps <= 16 else 32
    block_c, block_p = (8, 16) if _is_last(x) else (1, 1024 // padded_taps)
    rows, columns = _outputs(x, axes)
    blocks = -(-rows * columns // block_p) * images
    across = -(-channels // block_c)
    parts = max(1, min(blocks, _PROGRAMS // across))
    found = x.new_empty(parts, channels, padded_taps, padded_taps, dtype=torch.float32)
    total = x.new_empty(1, channels, height, width, dtype=torch.float32)
    kernels.products[(across, parts)](
        *(x, centre, found, images, channels, height, width, rows * columns, columns),
        *(*x.stride(), *_geometry(axes), padded_taps, block_c, block_p),
    )
    block_c, block_p = _blocks(x)
    grid = (-(-channels // block_c), -(-height * width // block_p))
    kernels.summed[grid](
        *(x, centre, total, images, channels, height * width, width, *x.stride()),
        *(block_c, block_p),
    )
    return found.sum(0, dtype=torch.float64)[:, :taps, :taps].float(), total


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
    block_c, block_p = _blocks(x)
    grid = (-(-channels // block_c), -(-height * width // block_p), images)
    kernels.gradient[grid](
        *(x, weight.contiguous(), image.contiguous(), of_x, total, channels, height, width),
        *(*_outputs(x, axes), *x.stride(), *of_x.stride(), *_geometry(axes), block_c, block_p),
    )
    return total


def _kernels_for(x: Tensor, axes: Sequence[Axis]) -> ModuleType | None:
    if x.device.type not in DEVICES or x.ndim != 4 or x.dtype not in _DTYPES or 0 in x.shape:
        return None
    if torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter):
        return None
    is_small = prod(axis.size for axis in axes) <= _MOST_TAPS
    return _kernels() if is_small else None


@cache
def _kernels() -> ModuleType | None:
    try:
        from triton import knobs, runtime  # type: ignore[import-untyped] # it ships no types

        from repblocks.execution import triton_windows

        if not knobs.runtime.interpret:
            runtime.driver.active.get_current_target()  # builds what launches kernels
    except (ImportError, RuntimeError) as error:
        _log.info("Depthwise blocks are merged by torch alone, which is slower: %s.", error)
        return None
    return triton_windows


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
    return (32, 16) if _is_last(x) else (1, 512)
