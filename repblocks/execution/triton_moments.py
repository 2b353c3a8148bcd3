"""Means and deviations of the channels of images, as Triton kernels for a GPU.

Arithmetic is in float32, whatever the images are.

Shapes: images ``(N, C, P)`` of the same strides. A program takes blocks of positions of an image,
and a block of channels.
"""

# ruff: noqa: ANN001, ANN201, N803 - Triton knows types, and writes its constants large
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block(item, channels, positions, stride_n, stride_c, stride_p, BLOCK_C, BLOCK_P):
    """Return the channels of a program, where its values lie, and which of them there are."""
    blocks = tl.cdiv(positions, BLOCK_P)
    item = tl.full((), 0, tl.int64) + item
    start = item // blocks * stride_n + item % blocks * BLOCK_P * stride_p
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    place = start + c[:, None].to(tl.int64) * stride_c + p[None, :] * stride_p
    exists = (c < channels)[:, None] & (item % blocks * BLOCK_P + p < positions)[None, :]
    return c, place, exists


@triton.jit
def moments(
    images,
    parts,
    items,
    channels,
    positions,
    stride_n,
    stride_c,
    stride_p,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the number, the mean and the squared deviations of what each program reads.

    ``parts`` is ``(programs, B, 3, C)``. Deviations are taken from the mean of the first block, so
    that nothing cancels.
    """
    first, step = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    geometry = (channels, positions, stride_n, stride_c, stride_p)
    for b in tl.static_range(len(images)):
        _, place, exists = block(first, *geometry, BLOCK_C, BLOCK_P)
        value = tl.load(images[b] + place, mask=exists, other=0.0).to(tl.float32)
        pivot = tl.sum(value, 1) / tl.maximum(tl.sum(exists.to(tl.float32), 1), 1.0)
        number = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
        total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
        squares = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
        for item in range(first, items, step):
            _, place, exists = block(item, *geometry, BLOCK_C, BLOCK_P)
            value = tl.load(images[b] + place, mask=exists, other=0.0).to(tl.float32)
            value = tl.where(exists, value - pivot[:, None], 0.0)
            number += exists.to(tl.float32)
            total += value
            squares += value * value
        count, mean = tl.sum(number, 1), tl.sum(total, 1)
        mean /= tl.maximum(count, 1.0)
        target = parts + (first.to(tl.int64) * len(images) + b) * 3 * channels + c
        tl.store(target, count, mask=c < channels)
        tl.store(target + channels, pivot + mean, mask=c < channels)
        deviation = tl.sum(squares, 1) - count * mean * mean
        tl.store(target + 2 * channels, deviation, mask=c < channels)


@triton.jit
def joint(parts, programs, step, channels, c, BLOCK_C, BLOCK_N):
    """Return mean and squared deviations of all programs' values, ``(BLOCK_C,)``."""
    n = tl.arange(0, BLOCK_N)
    count = tl.zeros((BLOCK_C,), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, programs, BLOCK_N):
        exists = (start + n < programs)[:, None] & (c < channels)[None, :]
        place = parts + (start + n)[:, None] * step + c[None, :]
        number = tl.load(place, mask=exists, other=0.0)
        count += tl.sum(number, 0)
        total += tl.sum(number * tl.load(place + channels, mask=exists, other=0.0), 0)
    mean = total / tl.maximum(count, 1.0)
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, programs, BLOCK_N):
        exists = (start + n < programs)[:, None] & (c < channels)[None, :]
        place = parts + (start + n)[:, None] * step + c[None, :]
        number = tl.load(place, mask=exists, other=0.0)
        away = tl.load(place + channels, mask=exists, other=0.0) - mean[None, :]
        own = tl.load(place + 2 * channels, mask=exists, other=0.0)
        squares += tl.sum(own + number * away * away, 0)
    return mean, squares


@triton.jit
def shifted(
    x,
    other,
    shift,
    y,
    channels,
    positions,
    stride_n,
    stride_c,
    stride_p,
    IS_ALONE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the input plus a shift ``(C,)`` and, unless it is alone, another one, like it."""
    geometry = (channels, positions, stride_n, stride_c, stride_p)
    c, place, exists = block(tl.program_id(0), *geometry, BLOCK_C, BLOCK_P)
    value = tl.load(x + place, mask=exists, other=0.0).to(tl.float32)
    if not IS_ALONE:
        value += tl.load(other + place, mask=exists, other=0.0).to(tl.float32)
    value += of_channels(shift, c, channels)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=exists)


@triton.jit
def of_channels(values, c, channels):
    """Return the values of some channels in float32, to be spread over positions."""
    return tl.load(values + c, mask=c < channels, other=0.0).to(tl.float32)[:, None]
