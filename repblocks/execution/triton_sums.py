"""Sums of normalised images and the ReLU after them, in one pass, as Triton kernels for a GPU.

Each branch is normalised by its mean and its factor, and the sum of all is shifted and, if wanted,
rectified. Where its sign is needed again the sum is computed anew, so that neither it nor a
normalised image is kept. Arithmetic is in float32, whatever the images are.

Shapes: B images ``(N, C, P)`` of the same strides; ``(B, C)`` means and inverses, one over the
deviation, and factors, which are those times the weights. A program takes a block of positions of
an image, and a block of channels.
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803 - Triton knows types, and writes its constants large
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from repblocks.execution.triton_moments import block, joint, of_channels


@triton.jit
def _normed(image, means, scales, b, c, channels, place, exists):
    """Return the values of branch b less their means, times its scales."""
    value = tl.load(image + place, mask=exists, other=0.0).to(tl.float32)
    scale = of_channels(scales + b * channels, c, channels)
    return scale * (value - of_channels(means + b * channels, c, channels))


@triton.jit
def _sum(images, means, factors, shift, c, channels, place, exists):
    """Return the sum of the normalised branches, shifted."""
    total = of_channels(shift, c, channels) + tl.zeros(place.shape, tl.float32)
    for b in tl.static_range(len(images)):
        total += _normed(images[b], means, factors, b, c, channels, place, exists)
    return total


@triton.jit
def _arrived(g, images, means, factors, shift, c, channels, place, exists, RECTIFIED: tl.constexpr):
    """Return the gradient of the sum, from that of what follows it."""
    own = tl.load(g + place, mask=exists, other=0.0).to(tl.float32)
    if RECTIFIED:
        total = _sum(images, means, factors, shift, c, channels, place, exists)
        own = tl.where(total <= 0, 0.0, own)
    return own


@triton.jit
def statistics(
    parts,
    programs,
    weights,
    biases,
    running_means,
    running_variances,
    means,
    inverses,
    factors,
    shift,
    channels,
    epsilon,
    momentum,
    count,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write means, inverses, factors ``(B, C)`` and shift ``(C,)``; move the running statistics.

    ``weights`` and ``biases`` are empty where the norms have none.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    total = tl.zeros((BLOCK_C,), tl.float32)
    branches: tl.constexpr = len(running_means)
    for b in tl.static_range(branches):
        own, step = parts + b * 3 * channels, branches * 3 * channels
        mean, squares = joint(own, programs, step, channels, c, BLOCK_C, BLOCK_N)
        inverse = tl.rsqrt(squares / count + epsilon)
        factor = inverse
        if len(weights) > 0:
            factor *= tl.load(weights[b] + c, mask=exists, other=0.0).to(tl.float32)
        if len(biases) > 0:
            total += tl.load(biases[b] + c, mask=exists, other=0.0).to(tl.float32)
        tl.store(means + b * channels + c, mean, mask=exists)
        tl.store(inverses + b * channels + c, inverse, mask=exists)
        tl.store(factors + b * channels + c, factor, mask=exists)
        _move(running_means[b] + c, mean, momentum, exists)
        _move(running_variances[b] + c, squares / (count - 1), momentum, exists)
    tl.store(shift + c, total, mask=exists)


@triton.jit
def _move(place, value, momentum, exists):
    old = tl.load(place, mask=exists, other=0.0).to(tl.float32)
    new = old + momentum * (value - old)
    tl.store(place, new.to(place.dtype.element_ty), mask=exists)


@triton.jit
def normed_sum(
    images,
    means,
    factors,
    shift,
    y,
    channels,
    positions,
    stride_n,
    stride_c,
    stride_p,
    RECTIFIED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the sum of the normalised branches, like each of them."""
    geometry = (channels, positions, stride_n, stride_c, stride_p)
    c, place, exists = block(tl.program_id(0), *geometry, BLOCK_C, BLOCK_P)
    total = _sum(images, means, factors, shift, c, channels, place, exists)
    if RECTIFIED:
        total = tl.where(total <= 0, 0.0, total)  # not a number stays that
    tl.store(y + place, total.to(y.dtype.element_ty), mask=exists)


@triton.jit
def gradient_sums(
    images,
    means,
    factors,
    shift,
    inverses,
    g,
    parts,
    channels,
    positions,
    stride_n,
    stride_c,
    stride_p,
    RECTIFIED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the sums of the gradient times each normalised branch, and its own, of each block.

    ``parts`` is ``(programs, B + 1, C)``.
    """
    geometry = (channels, positions, stride_n, stride_c, stride_p)
    c, place, exists = block(tl.program_id(0), *geometry, BLOCK_C, BLOCK_P)
    own = _arrived(g, images, means, factors, shift, c, channels, place, exists, RECTIFIED)
    branches: tl.constexpr = len(images)
    target = parts + tl.program_id(0).to(tl.int64) * (branches + 1) * channels + c
    for b in tl.static_range(branches):
        normed = _normed(images[b], means, inverses, b, c, channels, place, exists)
        found = tl.sum(tl.where(exists, own * normed, 0.0), 1)
        tl.store(target + b * channels, found, mask=c < channels)
    tl.store(target + branches * channels, tl.sum(own, 1), mask=c < channels)


@triton.jit
def gradients(
    images,
    means,
    factors,
    shift,
    inverses,
    g,
    sums,
    of_images,
    count,
    channels,
    positions,
    stride_n,
    stride_c,
    stride_p,
    RECTIFIED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write the gradients of all branches, from the sums ``(B + 1, C)`` over so many values."""
    geometry = (channels, positions, stride_n, stride_c, stride_p)
    c, place, exists = block(tl.program_id(0), *geometry, BLOCK_C, BLOCK_P)
    own = _arrived(g, images, means, factors, shift, c, channels, place, exists, RECTIFIED)
    branches: tl.constexpr = len(images)
    own -= of_channels(sums + branches * channels, c, channels) / count
    for b in tl.static_range(branches):
        normed = _normed(images[b], means, inverses, b, c, channels, place, exists)
        part = own - normed * (of_channels(sums + b * channels, c, channels) / count)
        part *= of_channels(factors + b * channels, c, channels)
        tl.store(of_images[b] + place, part.to(of_images[b].dtype.element_ty), mask=exists)
