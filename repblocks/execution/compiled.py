"""Kernels compiled by numba, where it is installed and the tensors suit it; else None, and torch.

``pip install repblocks[kernels]`` installs it. It needs no compiler. The first call compiles for
some seconds, into a cache beside the module or in the user's folder; later processes load that.

Shapes: x ``(N, C, H, W)``, K taps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from repblocks.algebra.axis import Axis

_log = logging.getLogger(__name__)


def window_products(
    x: Tensor, centre: Tensor, axes: Sequence[Axis]
) -> tuple[Tensor, Tensor] | None:
    """Return the sums of the products of taps ``(C, K, K)``, and of the images ``(1, C, H, W)``.

    Args:
        x: In float32 or float64.
        centre: ``(C,)``, taken from the input first.
        axes: Where the taps read; zeros outside.
    """
    kernels = _kernels_for(x, axes)
    if kernels is None:
        return None
    channels, taps = x.shape[1], _taps(axes)
    gram = torch.zeros(channels, taps, taps, dtype=torch.float64)
    summed = torch.zeros_like(x[0], memory_format=torch.contiguous_format)
    geometry = _geometry(x, axes, _has_lags(axes))
    _over_channels(kernels.gram, channels, [x.detach(), centre], geometry, [gram, summed])
    full = gram + gram.triu(1).transpose(1, 2)
    return full.to(x.dtype), summed.unsqueeze(0)


def window_gradient(
    x: Tensor, weight: Tensor, image: Tensor, of_x: Tensor, axes: Sequence[Axis]
) -> Tensor | None:
    """Return ``of_x + image +`` what a symmetric weight makes of the taps, written back.

    Args:
        x: In float32 or float64.
        weight: ``(C, K, K)``.
        image: ``(1, C, H, W)``, added to each image.
        of_x: ``(N, C, H, W)``.
        axes: Where the taps read; zeros outside.
    """
    kernels = _kernels_for(x, axes)
    has_lags = _has_lags(axes)
    if kernels is None or (has_lags and not x.is_contiguous()):
        return None
    total = torch.empty_like(x)
    given = [x.detach(), weight.contiguous(), image[0].contiguous(), of_x.to(x.dtype)]
    _over_channels(kernels.gradient, x.shape[1], given, _geometry(x, axes, has_lags), [total])
    return total


def serves(x: Tensor, axes: Sequence[Axis]) -> bool:
    """Tell whether there are kernels for an input ``(N, C, *spatial)`` and its windows."""
    return _kernels_for(x, axes) is not None


def _kernels_for(x: Tensor, axes: Sequence[Axis]) -> ModuleType | None:
    if torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter):
        return None
    if x.device.type != "cpu" or x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        return None
    if any(axis.low < 0 or axis.high < 0 for axis in axes) or 0 in x.shape:
        return None
    kernels = _kernels()
    return None if kernels is None else kernels[0 if _has_lags(axes) else 1]


@cache
def _kernels() -> tuple[ModuleType, ModuleType] | None:
    try:
        from repblocks.execution import compiled_lags, compiled_phases
    except ImportError as error:
        _log.info(
            "Depthwise blocks are merged by torch alone, which is slower: %s. "
            "pip install repblocks[kernels] brings compiled kernels.",
            error,
        )
        return None
    return compiled_lags, compiled_phases


def _has_lags(axes: Sequence[Axis]) -> bool:
    """Tell whether products of taps depend on their difference, in whole positions."""
    return all(axis.stride == 1 and axis.dilation == 1 for axis in axes)


def _taps(axes: Sequence[Axis]) -> int:
    first, second = axes
    return first.size * second.size


def _geometry(x: Tensor, axes: Sequence[Axis], has_lags: bool) -> list[Any]:
    """Return how the compiled functions are told where the taps read."""
    low = tuple(axis.low for axis in axes)
    sizes = zip(x.shape[2:], axes, strict=True)
    counts = tuple((size + axis.slack) // axis.stride + 1 for size, axis in sizes)
    if has_lags:
        return [tuple(axis.size for axis in axes), low, counts]
    reads = [[t * axis.dilation - axis.low for t in range(axis.size)] for axis in axes]
    base = tuple(min(read) // axis.stride for read, axis in zip(reads, axes, strict=True))
    most = [max(read) // axis.stride for read, axis in zip(reads, axes, strict=True)]
    size = tuple(n + m - b for n, m, b in zip(counts, most, base, strict=True))
    steps = tuple(axis.stride for axis in axes)
    taps = [
        (
            row % steps[0] * steps[1] + column % steps[1],
            (row // steps[0] - base[0]) * size[1] + column // steps[1] - base[1],
        )
        for row, column in product(*reads)
    ]
    return [torch.tensor(taps).numpy(), base, steps, size, counts]


def _over_channels(
    run: Callable[..., None],
    channels: int,
    given: Sequence[Tensor],
    geometry: Sequence[Any],
    results: Sequence[Tensor],
) -> None:
    """Run a function that leaves the interpreter's lock, on as many threads as torch uses."""
    arrays = [tensor.numpy() for tensor in given]
    written = [tensor.numpy() for tensor in results]
    parts = min(torch.get_num_threads(), channels)
    ranges = [*pairwise(channels * part // parts for part in range(parts + 1))]

    def part(bounds: tuple[int, int]) -> None:
        run(*arrays, *geometry, *bounds, *written)

    if parts == 1:
        part(ranges[0])
        return
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(part, ranges))
