"""Products and maps of channels that lie last in memory, as Triton kernels for a GPU.

Factors are rounded to the dtype of the images, as tensor cores take them; sums are in float32.

Shapes: images as matrices ``(P, C)`` of all positions.
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803 - Triton knows types, and writes its constants large
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _read(image, shift, p, c, positions, channels, IS_SHIFTED: tl.constexpr):
    """Return the values of positions and channels, less the shift ``(C,)``."""
    exists = (p < positions)[:, None] & (c < channels)[None, :]
    place = p.to(tl.int64)[:, None] * channels + c[None, :]
    value = tl.load(image + place, mask=exists, other=0.0)
    if IS_SHIFTED:
        away = tl.load(shift + c, mask=c < channels, other=0.0)
        value = tl.where(exists, value.to(tl.float32) - away[None, :], 0.0)
        value = value.to(image.dtype.element_ty)
    return value


@triton.jit
def products(
    g,
    x,
    shift,
    parts,
    positions,
    outputs,
    channels,
    BOTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the sums of the products of channels, ``(parts, O, C + 1)``; the last are those of g.

    x is taken less the shift, and g if both are. What a program reads are blocks of positions, one
    in so many as there are parts.
    """
    across = tl.cdiv(channels, BLOCK_C)
    o = tl.program_id(1) // across * BLOCK_O + tl.arange(0, BLOCK_O)
    c = tl.program_id(1) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    found = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    total = tl.zeros((BLOCK_O,), tl.float32)
    for item in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        p = item * BLOCK_P + tl.arange(0, BLOCK_P)
        left = _read(g, shift, p, o, positions, outputs, BOTH)
        right = _read(x, shift, p, c, positions, channels, True)
        found += tl.dot(tl.trans(left), right, input_precision="ieee")
        total += tl.sum(left.to(tl.float32), 0)
    line = parts + (tl.program_id(0).to(tl.int64) * outputs + o) * (channels + 1)
    exists = (o < outputs)[:, None] & (c < channels)[None, :]
    tl.store(line[:, None] + c[None, :], found, mask=exists)
    tl.store(line + channels, total, mask=o < outputs)


@triton.jit
def mapped(
    x,
    shift,
    weight,
    bias,
    other,
    y,
    positions,
    channels,
    outputs,
    stride_o,
    stride_c,
    stride_b,
    of_weight,
    of_bias,
    IS_SHIFTED: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write what a weight ``(O, C)``, times its factor, makes of the input less the shift ``(C,)``.

    A bias ``(O,)``, times its own, is added and, unless it is alone, another image like ``y``.
    """
    across = tl.cdiv(outputs, BLOCK_O)
    p = tl.program_id(0) // across * BLOCK_P + tl.arange(0, BLOCK_P)
    o = tl.program_id(0) % across * BLOCK_O + tl.arange(0, BLOCK_O)
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        value = _read(x, shift, p, c, positions, channels, IS_SHIFTED)
        is_own = (c < channels)[:, None] & (o < outputs)[None, :]
        place = weight + o[None, :] * stride_o + c[:, None] * stride_c
        own = of_weight * tl.load(place, mask=is_own, other=0.0)
        total += tl.dot(value, own.to(value.dtype), input_precision="ieee")
    total += (of_bias * tl.load(bias + o * stride_b, mask=o < outputs, other=0.0))[None, :]
    exists = (p < positions)[:, None] & (o < outputs)[None, :]
    place = p.to(tl.int64)[:, None] * outputs + o[None, :]
    if not IS_ALONE:
        total += tl.load(other + place, mask=exists, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=exists)
