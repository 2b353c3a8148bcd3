"""Moments of depthwise windows and their gradient, as Triton kernels for a GPU.

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
    own = (tl.program_id(1) * channels + c).to(tl.int64) * pairs
    for pair in tl.static_range(pairs):
        tl.store(parts + own + pair, tl.sum(totals[pair], 1), mask=c < channels)


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


@triton.jit
def inner_gradient(
    x,
    lags,
    image,
    of_x,
    total,
    channels,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    of_stride_n,
    of_stride_c,
    of_stride_h,
    of_stride_w,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    bottom,
    right,
    R: tl.constexpr,
    S: tl.constexpr,
    DILATION_R: tl.constexpr,
    DILATION_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the gradient where all windows that read a position are outputs, with stride 1.

    Those are the positions from TOP and LEFT to before bottom and right; ``lags`` is the sum of the
    weights of all pairs of taps at each distance, ``(C, 2R - 1, 2S - 1)``.
    """
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = (tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    i, j = p // (right - LEFT) + TOP, p % (right - LEFT) + LEFT
    exists = (c < channels) & (i < bottom)
    n = tl.program_id(2).to(tl.int64)
    given = of_x + n * of_stride_n + c * of_stride_c + i * of_stride_h + j * of_stride_w
    own = tl.load(given, mask=exists, other=0.0).to(tl.float32)
    own += tl.load(image + c * (height * width) + i * width + j, mask=exists, other=0.0)
    here = n * stride_n + c * stride_c + i * stride_h + j * stride_w
    for a in tl.static_range(1 - R, R):
        for b in tl.static_range(1 - S, S):
            row, column = i + a * DILATION_R, j + b * DILATION_S
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            there = here + a * DILATION_R * stride_h + b * DILATION_S * stride_w
            value = tl.load(x + there, mask=exists & inside, other=0.0).to(tl.float32)
            lag = (a + R - 1) * (2 * S - 1) + b + S - 1
            weight = lags + c * ((2 * R - 1) * (2 * S - 1)) + lag
            own += tl.load(weight, mask=c < channels, other=0.0) * value
    tl.store(total + here, own.to(total.dtype.element_ty), mask=exists)


@triton.jit
def gradient(
    x,
    weight,
    image,
    of_x,
    total,
    channels,
    height,
    width,
    rows,
    columns,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    of_stride_n,
    of_stride_c,
    of_stride_h,
    of_stride_w,
    top,
    bottom,
    left,
    right,
    R: tl.constexpr,
    S: tl.constexpr,
    LOW_R: tl.constexpr,
    LOW_S: tl.constexpr,
    STEP_R: tl.constexpr,
    STEP_S: tl.constexpr,
    DILATION_R: tl.constexpr,
    DILATION_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write ``of_x + image +`` the weight ``(C, K, K)`` times the taps, written back, like ``x``.

    Left out are the positions from top and left to before bottom and right.

    What tap k of a window writes to a position is read by tap k' at the distance of the two, at any
    stride: so a position adds up its neighbours, each times the sum of the weights of those pairs
    whose window is an output.
    """
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = (tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    # First the rows above and below what is left out, then what lies beside it.
    above = (top + height - bottom) * width
    beside = left + width - right
    side, row = (p - above) % tl.maximum(beside, 1), p // width
    i = tl.where(p < above, row, (p - above) // tl.maximum(beside, 1) + top)
    i = tl.where((p < above) & (row >= top), row + bottom - top, i)
    j = tl.where(p < above, p % width, tl.where(side < left, side, side + right - left))
    exists = (c < channels) & (p < above + (bottom - top) * beside)
    n = tl.program_id(2).to(tl.int64)
    given = of_x + n * of_stride_n + c * of_stride_c + i * of_stride_h + j * of_stride_w
    own = tl.load(given, mask=exists, other=0.0).to(tl.float32)
    own += tl.load(image + c * (height * width) + i * width + j, mask=exists, other=0.0)
    here = n * stride_n + c * stride_c + i * stride_h + j * stride_w
    pairs = weight + c * (R * S * R * S)
    for a in range(1 - R, R):
        for b in range(1 - S, S):
            row, column = i + a * DILATION_R, j + b * DILATION_S
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            there = here + a * DILATION_R * stride_h + b * DILATION_S * stride_w
            value = tl.load(x + there, mask=exists & inside, other=0.0).to(tl.float32)
            factor = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
            for u in range(max(0, -a), min(R, R - a)):
                up = i + LOW_R - u * DILATION_R
                is_row = (up >= 0) & (up < rows * STEP_R) & (up % STEP_R == 0)
                for v in range(max(0, -b), min(S, S - b)):
                    back = j + LOW_S - v * DILATION_S
                    is_column = (back >= 0) & (back < columns * STEP_S) & (back % STEP_S == 0)
                    pair = (u * S + v) * (R * S) + (u + a) * S + v + b
                    found = tl.load(pairs + pair, mask=c < channels, other=0.0)
                    factor += tl.where(is_row & is_column, found, 0.0)
            own += factor * value
    tl.store(total + here, own.to(total.dtype.element_ty), mask=exists)
