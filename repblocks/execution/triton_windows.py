"""Moments of depthwise windows, as Triton kernels for a GPU.

Each program takes a few channels and many positions, or, where the channels lie last in memory,
more channels and fewer positions, so that neighbours in memory are read together. Everything is
summed in float32, whatever the input is; sums of several programs are added in float64.

Shapes: x ``(N, C, H, W)`` of any strides, windows of R x S taps, K = RS of them, P x Q outputs. A
tap ``(u, v)`` of the output ``(p, q)`` reads ``(p * STEP_R - LOW_R + u * DILATION_R, ...)``.
"""

# ruff: noqa: ANN001, ANN201, N803, RUF005 - Triton knows types, and its own Python
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def products(
    x,
    centre,
    parts,
    images,
    channels,
    height,
    width,
    outputs,
    columns,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    R: tl.constexpr,
    S: tl.constexpr,
    LOW_R: tl.constexpr,
    LOW_S: tl.constexpr,
    STEP_R: tl.constexpr,
    STEP_S: tl.constexpr,
    DILATION_R: tl.constexpr,
    DILATION_S: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the sums of the products of pairs of taps, the first from FIRST to before LAST.

    ``parts`` is ``(parts, C, pairs)``, the second tap not before the first, one after the other.
    What a program reads are blocks of outputs of images, one in so many as there are parts.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = (c < channels)[:, None]
    mean = tl.load(centre + c, mask=c < channels, other=0.0)[:, None]
    blocks = tl.cdiv(outputs, BLOCK_P)
    taps: tl.constexpr = R * S
    pairs: tl.constexpr = (LAST - FIRST) * taps - (LAST * (LAST - 1) - FIRST * (FIRST - 1)) // 2
    totals = ()
    for _ in tl.static_range(pairs):
        totals = totals + (tl.zeros((BLOCK_C, BLOCK_P), tl.float32),)
    for item in range(tl.program_id(1), images * blocks, tl.num_programs(1)):
        p = ((item % blocks) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
        top, left = p // columns * STEP_R - LOW_R, p % columns * STEP_S - LOW_S
        image = x + (item // blocks).to(tl.int64) * stride_n + c[:, None] * stride_c
        is_read = is_channel & (p < outputs)
        values = ()
        for k in tl.static_range(FIRST, taps):
            row, column = top + (k // S) * DILATION_R, left + (k % S) * DILATION_S
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & is_read
            value = tl.load(image + row * stride_h + column * stride_w, mask=inside, other=0.0)
            values = values + (tl.where(inside, value.to(tl.float32) - mean, 0.0),)
        sums = ()
        for a in tl.static_range(LAST - FIRST):
            for b in tl.static_range(a, taps - FIRST):
                sums = sums + (totals[len(sums)] + values[a] * values[b],)
        totals = sums
    every: tl.constexpr = taps * (taps + 1) // 2
    begin: tl.constexpr = FIRST * taps - FIRST * (FIRST - 1) // 2
    own = (tl.program_id(1) * channels + c).to(tl.int64) * every + begin
    for pair in tl.static_range(pairs):
        tl.store(parts + own + pair, tl.sum(totals[pair], 1), mask=c < channels)


@triton.jit
def moments(
    parts,
    programs,
    images,
    centre,
    share,
    border,
    mean,
    covariance,
    channels,
    height,
    width,
    outputs,
    columns,
    count,
    R: tl.constexpr,
    S: tl.constexpr,
    LOW_R: tl.constexpr,
    LOW_S: tl.constexpr,
    STEP_R: tl.constexpr,
    STEP_S: tl.constexpr,
    DILATION_R: tl.constexpr,
    DILATION_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write mean ``(C, K)``, less the offset, and covariance ``(C, K, K)`` of a channel's taps.

    ``images`` is the sum of all images less the centre; ``share`` the mean of the mask of the image
    at each tap, and ``border`` the covariance of that.
    """
    c = tl.program_id(0)
    taps: tl.constexpr = R * S
    k = tl.arange(0, BLOCK_K)
    u, v = k[:, None], k[None, :]
    low, high = tl.minimum(u, v), tl.maximum(u, v)
    pair = low * taps - low * (low - 1) // 2 + high - low
    exists = (u < taps) & (v < taps)
    gram = tl.zeros((BLOCK_K, BLOCK_K), tl.float64)
    every: tl.constexpr = taps * (taps + 1) // 2
    for start in range(0, programs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        place = (n * channels + c).to(tl.int64)[:, None, None] * every + pair[None, :, :]
        is_part = (n < programs)[:, None, None] & exists[None, :, :]
        found = tl.load(parts + place, mask=is_part, other=0.0)
        gram += tl.sum(found.to(tl.float64), 0)
    inner = tl.load(share + k, mask=k < taps, other=0.0)[:, None]
    total = tl.zeros((BLOCK_K,), tl.float32)
    mixed = tl.zeros((BLOCK_K, BLOCK_K), tl.float32)
    image = images + c.to(tl.int64) * height * width
    for start in range(0, outputs, BLOCK_P):
        p = (start + tl.arange(0, BLOCK_P))[None, :]
        row = p // columns * STEP_R - LOW_R + (u // S) * DILATION_R
        column = p % columns * STEP_S - LOW_S + (u % S) * DILATION_S
        is_read = (u < taps) & (p < outputs)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & is_read
        value = tl.load(image + row * width + column, mask=inside, other=0.0)
        away = tl.where(is_read, inside.to(tl.float32) - inner, 0.0)
        total += tl.sum(value, 1)
        mixed += tl.dot(value, tl.trans(away), input_precision="ieee")
    average, middle = total / count, tl.load(centre + c)
    found = (gram / count).to(tl.float32) - average[:, None] * average[None, :]
    found += middle / count * (mixed + tl.trans(mixed))
    place = u * taps + v
    found += middle * middle * tl.load(border + place, mask=exists, other=0.0)
    tl.store(mean + c * taps + k, average, mask=k < taps)
    tl.store(covariance + c.to(tl.int64) * (taps * taps) + place, found, mask=exists)


@triton.jit
def summed(
    x,
    centre,
    total,
    images,
    channels,
    positions,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the sum of all images less the centre, ``(C, H, W)``."""
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = (tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    exists = (c < channels) & (p < positions)
    mean = tl.load(centre + c, mask=c < channels, other=0.0)
    place = x + c * stride_c + (p // width) * stride_h + (p % width) * stride_w
    own = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for _ in range(images):
        own += tl.load(place, mask=exists, other=0.0).to(tl.float32) - mean
        place += stride_n
    tl.store(total + c * positions + p, own, mask=exists)
