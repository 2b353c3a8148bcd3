"""Moments of depthwise windows and their gradient, as Triton kernels for a GPU.

Each program takes a few channels and many positions, or, where the channels lie last in memory,
more channels and fewer positions, so that neighbours in memory are read together. Everything is
summed in float32, whatever the input is; sums of several programs are added in float64.

Shapes: x ``(N, C, H, W)`` of any strides, windows of R x S taps, K = RS of them, P x Q outputs. A
tap ``(u, v)`` of the output ``(p, q)`` reads ``(p * STEP_R - LOW_R + u * DILATION_R, ...)``.
"""

# ruff: noqa: ANN001, ANN201, N803 - Triton knows types, and writes its constants large
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
    TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the sums of the products of all pairs of taps, ``(parts, C, TAPS, TAPS)``.

    TAPS is K made a power of two; what a program reads are blocks of outputs of images, one in so
    many as there are parts.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, TAPS)
    is_channel = (c < channels)[:, None, None]
    mean = tl.load(centre + c, mask=c < channels, other=0.0)[:, None, None]
    down = (k // S) * DILATION_R - LOW_R
    right = (k % S) * DILATION_S - LOW_S
    blocks = tl.cdiv(outputs, BLOCK_P)
    total = tl.zeros((BLOCK_C, TAPS, TAPS), tl.float32)
    for item in range(tl.program_id(1), images * blocks, tl.num_programs(1)):
        p = (item % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        row = (p // columns * STEP_R)[None, :] + down[:, None]
        column = (p % columns * STEP_S)[None, :] + right[:, None]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        inside = inside & (k < R * S)[:, None] & (p < outputs)[None, :]
        is_read = inside[None, :, :] & is_channel
        place = c[:, None, None] * stride_c + (row * stride_h + column * stride_w)[None, :, :]
        image = x + (item // blocks).to(tl.int64) * stride_n
        value = tl.load(image + place, mask=is_read, other=0.0).to(tl.float32)
        value = tl.where(is_read, value - mean, 0.0)
        total += tl.dot(value, tl.permute(value, (0, 2, 1)), input_precision="ieee")
    own = tl.program_id(1) * channels + c
    pair = k[:, None] * TAPS + k[None, :]
    target = parts + own[:, None, None].to(tl.int64) * (TAPS * TAPS) + pair[None, :, :]
    tl.store(target, total, mask=is_channel)


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

    What tap k of a window writes to a position is read by tap k' at the distance of the two, at any
    stride: so a position adds up its neighbours, each times the sum of the weights of those pairs
    whose window is an output.
    """
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = (tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    i, j = p // width, p % width
    exists = (c < channels) & (p < height * width)
    n = tl.program_id(2).to(tl.int64)
    given = of_x + n * of_stride_n + c * of_stride_c + i * of_stride_h + j * of_stride_w
    own = tl.load(given, mask=exists, other=0.0).to(tl.float32)
    own += tl.load(image + c * (height * width) + p, mask=exists, other=0.0)
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
                top = i + LOW_R - u * DILATION_R
                is_row = (top >= 0) & (top < rows * STEP_R) & (top % STEP_R == 0)
                for v in range(max(0, -b), min(S, S - b)):
                    left = j + LOW_S - v * DILATION_S
                    is_column = (left >= 0) & (left < columns * STEP_S) & (left % STEP_S == 0)
                    pair = (u * S + v) * (R * S) + (u + a) * S + v + b
                    found = tl.load(pairs + pair, mask=c < channels, other=0.0)
                    factor += tl.where(is_row & is_column, found, 0.0)
            own += factor * value
    tl.store(total + here, own.to(total.dtype.element_ty), mask=exists)
