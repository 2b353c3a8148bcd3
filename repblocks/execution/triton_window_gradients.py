"""The gradient of the moments of depthwise windows, as Triton kernels for a GPU.

Shapes: as in :mod:`repblocks.execution.triton_windows`; everything is summed in float32.
"""

# ruff: noqa: ANN001, ANN201, N803 - Triton knows types, and its own Python
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weights(
    mean,
    of_mean,
    of_covariance,
    lags,
    biases,
    mean_c,
    mean_k,
    covariance_c,
    covariance_k,
    factor,
    R: tl.constexpr,
    S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Write what the gradient of the moments weighs the input by, in a channel.

    ``lags (C, L + 1)`` are the sums of the weights of all pairs of taps at each of the L distances,
    and of the biases ``(C, K)``; a weight is the factor times twice the gradient of the covariance.
    """
    c = tl.program_id(0).to(tl.int64)
    taps: tl.constexpr = R * S
    k = tl.arange(0, BLOCK_K)
    u, v = k[:, None], k[None, :]
    own = of_covariance + c * covariance_c
    weight = tl.load(own + u * covariance_k + v, mask=(u < taps) & (v < taps), other=0.0)
    average = tl.load(mean + c * taps + k, mask=k < taps, other=0.0)
    bias = tl.load(of_mean + c * mean_c + k * mean_k, mask=k < taps, other=0.0)
    bias = factor * (bias - 2 * tl.sum(weight * average[None, :], 1))
    tl.store(biases + c * taps + k, bias, mask=k < taps)
    distances: tl.constexpr = (2 * R - 1) * (2 * S - 1)
    lag = tl.arange(0, BLOCK_L)
    down, across = lag // (2 * S - 1) - R + 1, lag % (2 * S - 1) - S + 1
    total = tl.zeros((BLOCK_L,), tl.float32)
    for first in range(taps):
        row, column = first // S + down, first % S + across
        exists = (row >= 0) & (row < R) & (column >= 0) & (column < S) & (lag < distances)
        total += tl.load(own + first * covariance_k + row * S + column, mask=exists, other=0.0)
    total = tl.where(lag == distances, tl.sum(bias, 0), 2 * factor * total)
    tl.store(lags + c * (distances + 1) + lag, total, mask=lag <= distances)


@triton.jit
def inner_gradient(
    x,
    lags,
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

    Those are the positions from TOP and LEFT to before bottom and right; ``lags`` is what
    :func:`weights` writes.
    """
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = (tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    i, j = p // (right - LEFT) + TOP, p % (right - LEFT) + LEFT
    exists = (c < channels) & (i < bottom)
    n = tl.program_id(2).to(tl.int64)
    given = of_x + n * of_stride_n + c * of_stride_c + i * of_stride_h + j * of_stride_w
    own = tl.load(given, mask=exists, other=0.0).to(tl.float32)
    distances: tl.constexpr = (2 * R - 1) * (2 * S - 1)
    sums = lags + c * (distances + 1)
    own += tl.load(sums + distances, mask=c < channels, other=0.0)
    here = n * stride_n + c * stride_c + i * stride_h + j * stride_w
    for a in tl.static_range(1 - R, R):
        for b in tl.static_range(1 - S, S):
            row, column = i + a * DILATION_R, j + b * DILATION_S
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            there = here + a * DILATION_R * stride_h + b * DILATION_S * stride_w
            value = tl.load(x + there, mask=exists & inside, other=0.0).to(tl.float32)
            lag = (a + R - 1) * (2 * S - 1) + b + S - 1
            own += tl.load(sums + lag, mask=c < channels, other=0.0) * value
    tl.store(total + here, own.to(total.dtype.element_ty), mask=exists)


@triton.jit
def gradient(
    x,
    of_covariance,
    biases,
    of_x,
    total,
    images,
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
    covariance_c,
    covariance_k,
    factor,
    R: tl.constexpr,
    S: tl.constexpr,
    LOW_R: tl.constexpr,
    LOW_S: tl.constexpr,
    STEP_R: tl.constexpr,
    STEP_S: tl.constexpr,
    DILATION_R: tl.constexpr,
    DILATION_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the gradient, like ``x``, but for the positions from top and left to bottom and right.

    It is ``of_x``, the biases of the windows that read a position, and the factor times twice the
    gradient of the covariance times the taps, written back. What tap k of a window writes to a
    position is read by tap k' at the distance of the two, at any stride: so a position adds up its
    neighbours, each times the sum of the weights of those pairs whose window is an output.
    """
    n = (tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None, None]
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :, None]
    p = (tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P))[None, None, :]
    # First the rows above and below what is left out, then what lies beside it.
    above = (top + height - bottom) * width
    beside = left + width - right
    side, row = (p - above) % tl.maximum(beside, 1), p // width
    i = tl.where(p < above, row, (p - above) // tl.maximum(beside, 1) + top)
    i = tl.where((p < above) & (row >= top), row + bottom - top, i)
    j = tl.where(p < above, p % width, tl.where(side < left, side, side + right - left))
    exists = (n < images) & (c < channels) & (p < above + (bottom - top) * beside)
    given = of_x + n * of_stride_n + c * of_stride_c + i * of_stride_h + j * of_stride_w
    own = tl.load(given, mask=exists, other=0.0).to(tl.float32)
    here = n * stride_n + c * stride_c + i * stride_h + j * stride_w
    bias = tl.zeros((1, BLOCK_C, BLOCK_P), tl.float32)
    for u in range(R):
        up = i + LOW_R - u * DILATION_R
        is_row = (up >= 0) & (up < rows * STEP_R) & (up % STEP_R == 0)
        for v in range(S):
            back = j + LOW_S - v * DILATION_S
            is_column = (back >= 0) & (back < columns * STEP_S) & (back % STEP_S == 0)
            found = tl.load(biases + c * (R * S) + u * S + v, mask=c < channels, other=0.0)
            bias += tl.where(is_row & is_column, found, 0.0)
    own += bias
    pairs = of_covariance + c * covariance_c
    for a in range(1 - R, R):
        for b in range(1 - S, S):
            row, column = i + a * DILATION_R, j + b * DILATION_S
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            there = here + a * DILATION_R * stride_h + b * DILATION_S * stride_w
            value = tl.load(x + there, mask=exists & inside, other=0.0).to(tl.float32)
            weight = tl.zeros((1, BLOCK_C, BLOCK_P), tl.float32)
            for u in range(max(0, -a), min(R, R - a)):
                up = i + LOW_R - u * DILATION_R
                is_row = (up >= 0) & (up < rows * STEP_R) & (up % STEP_R == 0)
                for v in range(max(0, -b), min(S, S - b)):
                    back = j + LOW_S - v * DILATION_S
                    is_column = (back >= 0) & (back < columns * STEP_S) & (back % STEP_S == 0)
                    pair = (u * S + v) * covariance_k + (u + a) * S + v + b
                    found = tl.load(pairs + pair, mask=c < channels, other=0.0)
                    weight += tl.where(is_row & is_column, found, 0.0)
            own += 2 * factor * weight * value
    tl.store(total + here, own.to(total.dtype.element_ty), mask=exists)
