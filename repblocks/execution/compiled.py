"""Kernels compiled by numba, where it is installed and the tensors suit it; else None, and torch.

``pip install repblocks[kernels]`` installs it. It needs no compiler. The first call compiles for
half a minute, into a cache beside the module or in the user's folder; later processes load that.

Shapes: x ``(N, C, H, W)``, K taps. All are depthwise, in float32 or float64, with zeros outside,
but for the arithmetic on rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from repblocks.algebra.axis import Axis
from repblocks.execution.flat_images import FlatImages, flat_images
from repblocks.execution.lag_images import LagImages, lag_images

#: Positions of an image, below which rows are too short.
SMALLEST_IMAGE = 64
_log = logging.getLogger(__name__)


def window_products(
    x: Tensor, centre: Tensor, axes: Sequence[Axis]
) -> tuple[Tensor, Tensor] | None:
    """Return the sums of the products of taps ``(C, K, K)``, and of the images ``(1, C, H, W)``.

    Args:
        x: What the taps read.
        centre: ``(C,)``, taken from the input first.
        axes: Where the taps read.
    """
    kernels = _kernels_for(x, axes)
    if kernels is None:
        return None
    channels, taps = x.shape[1], prod([axis.size for axis in axes])
    gram = torch.zeros(channels, taps, taps, dtype=torch.float64)
    if _has_lags(axes):
        lags = _lags(x, axes)
        summed = x.new_zeros(channels, lags.sizes[1])
        place = [lags.taps, lags.sizes, lags.rows, lags.half, *lags.edges]
        _over_channels(kernels.lags.gram, [x, centre, *place], [gram, summed])
        summed = lags.image(summed)
    else:
        flat = _flat(x, axes)
        summed = torch.zeros_like(x[0], memory_format=torch.contiguous_format)
        _over_channels(kernels.phases.gram, [x, centre, *flat.windows], [gram, summed])
    full = gram + gram.triu(1).transpose(1, 2)
    return full.to(x.dtype), summed.unsqueeze(0)


def window_gradient(
    x: Tensor, weight: Tensor, image: Tensor, of_x: Tensor, axes: Sequence[Axis]
) -> Tensor | None:
    """Return ``of_x + image +`` what a symmetric weight makes of the taps, written back.

    Args:
        x: What the taps read.
        weight: ``(C, K, K)``.
        image: ``(1, C, H, W)``, added to each image.
        of_x: ``(N, C, H, W)``; it may be written to.
        axes: Where the taps read.
    """
    kernels = _kernels_for(x, axes)
    has_lags = _has_lags(axes)
    if kernels is None or (has_lags and not x.is_contiguous()) or not is_plain(of_x):
        return None
    total = torch.empty_like(x).copy_(of_x) if of_x.stride() != x.stride() else of_x.to(x.dtype)
    given: list[Any] = [x, weight.contiguous(), image.contiguous()]
    if has_lags:
        lags = _lags(x, axes)
        given += [lags.taps, lags.sizes, lags.rows, lags.all, *lags.edges]
        _over_channels(kernels.lags.gradient, given, [total])
    else:
        given += _flat(x, axes).windows
        _over_channels(kernels.phases.gradient, given, [total])
    return total


def convolution(x: Tensor, weight: Tensor, bias: Tensor, axes: Sequence[Axis]) -> Tensor | None:
    """Return a depthwise convolution with a weight ``(C, 1, *k)`` and a bias ``(C,)``."""
    kernels = _convolutions_for(x, weight, axes)
    if kernels is None:
        return None
    flat = _flat(x, axes)
    y = x.new_empty(*x.shape[:2], *flat.counts)
    _over_channels(kernels.correlate, [x, weight.flatten(1), bias, *flat.windows], [y])
    return y


def convolution_gradient(
    g: Tensor, x: Tensor, weight: Tensor, axes: Sequence[Axis]
) -> Tensor | None:
    """Return the gradient of the input of :func:`convolution` from that of its output."""
    kernels = _convolutions_for(x, weight, axes)
    if kernels is None or g.dtype != x.dtype or not is_plain(g):
        return None
    flat, bias = _flat(x, axes), x.new_zeros(x.shape[1])
    gradient = (torch.empty_like if flat.covers else torch.zeros_like)(x)
    for taps, places, inputs in flat.phases:
        given = [g, weight.flatten(1)[:, taps], bias, places, flat.outputs_read, inputs]
        _over_channels(kernels.correlate, [*given, flat.read_sizes], [gradient])
    return gradient


def convolution_products(
    g: Tensor, x: Tensor, centre: Tensor, axes: Sequence[Axis]
) -> tuple[Tensor, Tensor] | None:
    """Return the gradient ``(C, K)`` of the weight of :func:`convolution`, and the sum of ``g``.

    Args:
        g: The gradient of the output, whose sum over all images is ``(C, P, Q)``.
        x: The input.
        centre: ``(C,)``, taken from the input first.
        axes: Where the taps read.
    """
    kernels = _kernels_for(x, axes)
    if kernels is None or not x.is_contiguous() or g.dtype != x.dtype or not is_plain(g):
        return None
    flat, channels = _flat(x, axes), x.shape[1]
    found = torch.zeros(channels, len(flat.places), dtype=torch.float64)
    summed = x.new_zeros(channels, flat.block)
    given = [x, g, centre, *flat.windows]
    _over_channels(kernels.convolutions.products, given, [found, summed])
    return found.to(x.dtype), flat.image(summed)


def run_rows(
    name: str, given: Sequence[Tensor], numbers: Sequence[float], results: Sequence[Tensor]
) -> None:
    """Run a kernel of :mod:`repblocks.execution.compiled_rows`, which are those that serve."""
    read = [_memory(tensor.contiguous()) for tensor in given]
    kernels: Any = _kernels()
    getattr(kernels.rows, name)(*read, *numbers, *(tensor.numpy() for tensor in results))


def serves(x: Tensor, axes: Sequence[Axis]) -> bool:
    """Tell whether there are kernels for an input ``(N, C, *spatial)`` and its windows."""
    return _kernels_for(x, axes) is not None


def convolves(x: Tensor, weight: Tensor, axes: Sequence[Axis]) -> bool:
    """Tell whether a weight ``(C, 1, *k)`` runs faster by these kernels than by torch."""
    is_large = x.shape[2:].numel() >= SMALLEST_IMAGE and all(axis.stride == 1 for axis in axes)
    return is_large and _convolutions_for(x, weight, axes) is not None


def is_plain(x: Tensor) -> bool:
    """Tell whether the memory of a tensor is all of it, and what is done with it unobserved."""
    return type(x) in (Tensor, Parameter) and not is_batched(x) and not is_in_torch_dispatch_mode()


def is_batched(x: Tensor | None) -> bool:
    """Tell whether a gradient stands for many, as ``is_grads_batched=True`` has it."""
    # There is no public way to ask.
    return x is not None and torch._C._functorch.is_legacy_batchedtensor(x)


def _kernels_for(x: Tensor, axes: Sequence[Axis]) -> Any | None:
    if torch.compiler.is_compiling() or not is_plain(x):
        return None
    if x.device.type != "cpu" or x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        return None
    if any(axis.low < 0 or axis.high < 0 for axis in axes) or 0 in x.shape:
        return None
    has_outputs = all(size + axis.slack >= 0 for size, axis in zip(x.shape[2:], axes, strict=False))
    return _kernels() if has_outputs else None


def _convolutions_for(x: Tensor, weight: Tensor, axes: Sequence[Axis]) -> Any | None:
    """Return the kernels of convolutions, for contiguous inputs: torch does channels_last well."""
    if weight.shape[:2] != (x.shape[1], 1) or x.dtype != weight.dtype or not x.is_contiguous():
        return None
    kernels = _kernels_for(x, axes)
    return None if kernels is None else kernels.convolutions


@cache
def _kernels() -> Any | None:
    try:
        _forget_older()
        from repblocks.execution import (
            compiled_convolutions,
            compiled_lags,
            compiled_phases,
            compiled_rows,
        )
    except (ImportError, RuntimeError) as error:  # no numba, or nowhere to write its cache
        _log.info(
            "Depthwise blocks are merged by torch alone, which is slower: %s. "
            "pip install repblocks[kernels] brings compiled kernels; NUMBA_CACHE_DIR names a "
            "folder that they can be kept in.",
            error,
        )
        return None
    return SimpleNamespace(
        convolutions=compiled_convolutions,
        lags=compiled_lags,
        phases=compiled_phases,
        rows=compiled_rows,
    )


def _forget_older() -> None:
    """Remove what was compiled beside the sources before one of them changed.

    numba looks at the file of each kernel, and not at those of the loops that it is made of.
    """
    folder = Path(__file__).parent
    sources = folder.glob("compiled_*.py")  # none in a package without sources
    changed = max((source.stat().st_mtime for source in sources), default=0.0)
    for known in folder.glob("__pycache__/compiled_*.nb[ic]"):
        with suppress(OSError):  # another process removes it as well, or nobody may
            if known.stat().st_mtime < changed:
                known.unlink()


def _has_lags(axes: Sequence[Axis]) -> bool:
    """Tell whether products of taps depend on their difference, and each window reads something."""
    is_simple = all(axis.stride == axis.dilation == 1 for axis in axes)
    return is_simple and all(max(axis.low, axis.high) < axis.size for axis in axes)


def _lags(x: Tensor, axes: Sequence[Axis]) -> LagImages:
    return lag_images(len(x), (x.shape[2], x.shape[3]), (axes[0], axes[1]))


def _flat(x: Tensor, axes: Sequence[Axis]) -> FlatImages:
    return flat_images(len(x), (x.shape[2], x.shape[3]), (axes[0], axes[1]))


def _over_channels(
    run: Callable[..., None], given: Sequence[Any], results: Sequence[Tensor]
) -> None:
    """Run a function that leaves the interpreter's lock, on as many threads as torch uses."""
    read = [_memory(item) if isinstance(item, Tensor) else item for item in given]
    written = [tensor.numpy() for tensor in results]
    channels = given[0].shape[1]
    parts = min(torch.get_num_threads(), channels)
    ranges = [*pairwise(channels * part // parts for part in range(parts + 1))]

    def part(bounds: tuple[int, int]) -> None:
        run(*read, *bounds, *written)

    if parts == 1:
        part(ranges[0])
        return
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(part, ranges))


def _memory(tensor: Tensor) -> Any:
    return tensor.detach().resolve_neg().numpy()
