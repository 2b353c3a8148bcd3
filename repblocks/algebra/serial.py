"""One affine map after another (paradigm 5, and k x k after k x k), and when that is exact.

A composition is exact on an axis if the second map pads nothing there, or if the first is pointwise
there and what the second pads equals what the first gives on zeros. Batch normalisation between two
convolutions usually breaks the second condition; the BN-aware padding of the papers restores it by
padding with the image of zero, which here is nothing but a pointwise map with padding of its own.

Source:
    Ding et al., Diverse Branch Block, CVPR 2021, section 3.2, https://arxiv.org/abs/2103.13425
"""

from __future__ import annotations

from functools import cache
from math import gcd, prod

import torch
from torch import Tensor
from torch.nn import functional

from repblocks.algebra.affine import (
    AffineMap,
    Lazy,
    accumulate,
    block_index,
    evaluated_rows,
    evaluated_weight,
    merged_columns,
    promoted,
)
from repblocks.algebra.axis import Axis, compose_axes
from repblocks.errors import NotFoldable

_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def compose(second: AffineMap, first: AffineMap) -> AffineMap:
    """Return ``second`` after ``first``.

    Raises:
        NotFoldable: if the channels do not fit, or the composition is not exact at the borders.
    """
    if second.in_channels != first.out_channels:
        raise NotFoldable(
            f"The second map reads {second.in_channels} channels, "
            f"the first gives {first.out_channels}."
        )
    ndim = max(len(second.axes), len(first.axes))
    second, first = second.with_axes(ndim), first.with_axes(ndim)
    _check_borders(second, first)
    axes = tuple(compose_axes(b, a) for b, a in zip(second.axes, first.axes, strict=True))
    mode = _common_mode(second, first)
    if mode == "circular" and any(axis.low < 0 or axis.high < 0 for axis in axes):
        raise NotFoldable("Circular padding on one side and cropping on the other do not compose.")
    index, weight = _composed_weight(second, first, axes)
    return AffineMap(first.in_channels, index, weight, _composed_bias(second, first), axes, mode)


def _check_borders(second: AffineMap, first: AffineMap) -> None:
    for number, (after, before) in enumerate(zip(second.axes, first.axes, strict=True)):
        if not after.pads:
            continue
        _check_padding_moves(number, after, before)
        if second.padding_mode == "zeros":
            # Whatever its values: training changes them, and a plan must not change with them.
            if first.bias is not None:
                raise NotFoldable(
                    f"The second map pads axis {number} with zeros, but the first, which has a "
                    "bias, does not give zero there."
                )
        elif before.stride != 1 or any(axis.pads for axis in first.axes):
            raise NotFoldable(
                f"Padding of mode {second.padding_mode!r} on axis {number} cannot be moved before "
                "a map with a stride or with padding of its own."
            )


def _common_mode(second: AffineMap, first: AffineMap) -> str:
    modes = {m.padding_mode for m in (second, first) if any(axis.pads for axis in m.axes)}
    if len(modes) > 1:
        raise NotFoldable(f"Both maps pad, and their padding modes differ: {sorted(modes)}.")
    return modes.pop() if modes else "zeros"


def _check_padding_moves(number: int, after: Axis, before: Axis) -> None:
    """Check that padding the output on one axis is the same as padding the input there."""
    if before.size != 1 or before.low < 0 or before.high < 0:
        raise NotFoldable(
            f"The second map pads axis {number} by ({after.low}, {after.high}), and the first is "
            f"not pointwise there: {before.size} taps, padding ({before.low}, {before.high})."
        )


def _composed_weight(
    second: AffineMap, first: AffineMap, axes: tuple[Axis, ...]
) -> tuple[Tensor, Lazy | None]:
    if first.is_selection and first.sizes == (1,) * len(axes):
        read = first.index[:, 0]
        is_identity = torch.equal(read, torch.arange(first.out_channels))
        return second.index if is_identity else read[second.index], second.weight
    if _multiplies_depth(second, first):
        return _composed_depth(second, first)
    width = second.index.shape[1] * first.index.shape[1]
    if width in (second.index.shape[1], first.index.shape[1]):
        return _composed_sparse(second, first)
    groups = gcd(second.groups, first.groups)
    if width <= first.in_channels // groups:
        return _composed_sparse(second, first)
    return _composed_blocks(second, first, groups)


def _multiplies_depth(second: AffineMap, first: AffineMap) -> bool:
    """Tell whether several filters of each channel are mixed by a pointwise kernel of groups."""
    copies, left = divmod(first.out_channels, first.in_channels)
    if left or copies == 1 or first.index.shape[1] > 1 or any(size > 1 for size in second.sizes):
        return False
    each = torch.arange(first.in_channels).repeat_interleave(copies)
    width, groups = second.index.shape[1], second.in_channels // second.index.shape[1]
    if width % copies or width * groups != second.in_channels or second.out_channels % groups:
        return False
    index = block_index(second.out_channels, second.in_channels, groups)
    return torch.equal(first.index[:, 0], each) and torch.equal(second.index, index)


def _composed_depth(second: AffineMap, first: AffineMap) -> tuple[Tensor, Lazy]:
    """Sum over the filters of each channel, without a kernel for each of them in between."""
    copies = first.out_channels // first.in_channels
    groups = second.in_channels // second.index.shape[1]

    def weight() -> Tensor:
        outer = evaluated_weight(second, _known_weight(first))
        outer, inner = promoted(outer, evaluated_weight(first, outer))
        mixed = torch.einsum(
            "gocm,gcmk->gock",
            outer.reshape(groups, -1, first.in_channels // groups, copies),
            inner.reshape(groups, -1, copies, prod(first.sizes)),
        )
        return mixed.reshape(second.out_channels, -1, *first.sizes)

    index = block_index(second.out_channels, first.in_channels, groups)
    return index, Lazy(weight)


def _composed_sparse(second: AffineMap, first: AffineMap) -> tuple[Tensor, Lazy]:
    """Combine each channel that the second map reads with each that the first reads for it."""
    in_order = torch.arange(first.out_channels).unsqueeze(1)
    is_in_order = torch.equal(second.index, in_order)
    index = first.index if is_in_order else first.index[second.index].flatten(1)
    column: Tensor | None = None
    if 1 not in (second.index.shape[1], first.index.shape[1]):
        index, column = merged_columns(index)

    like = cache(lambda: _known_weight(first))

    def weight(start: int, stop: int) -> Tensor:
        outer = evaluated_rows(second, start, stop, like())
        if is_in_order:
            read = evaluated_rows(first, start, stop, outer).unsqueeze(1)
        else:
            read = evaluated_weight(first, outer)[second.index[start:stop].to(outer.device)]
        outer, read = promoted(outer, read)
        pairs = _convolved(outer.unsqueeze(2), read, second, first).flatten(1, 2)
        if column is None:
            return pairs
        merged = pairs.new_zeros(stop - start, index.shape[1], *pairs.shape[2:])
        accumulate(merged, pairs, column[start:stop])
        return merged

    return index, Lazy(lambda: weight(0, index.shape[0]), weight)


def _convolved(outer: Tensor, inner: Tensor, second: AffineMap, first: AffineMap) -> Tensor:
    """Convolve kernels ``(O, M2, 1, *k2)`` with ``(O, M2, M1, *k1)``, pair by pair."""
    if all(1 in pair for pair in zip(second.sizes, first.sizes, strict=True)):
        return outer * inner
    pairs = inner.shape[:3].numel()
    stride, dilation = _lattice(second, first)
    result = _CONV_TRANSPOSE[len(second.axes)](
        inner.reshape(1, pairs, *first.sizes),
        outer.expand(*inner.shape[:3], *second.sizes).reshape(pairs, 1, *second.sizes),
        stride=stride,
        dilation=dilation,
        groups=pairs,
    )
    return result.view(*inner.shape[:3], *result.shape[2:])


def _composed_blocks(second: AffineMap, first: AffineMap, groups: int) -> tuple[Tensor, Lazy]:
    """Compose the kernels of each group as images: one transposed convolution does all.

    The full convolution of two kernels needs no flip when it is written as a transposed one; the
    spacing of their taps becomes its stride and dilation.
    """
    out_channels, in_channels = second.out_channels, first.in_channels

    def weight() -> Tensor:
        outer = in_blocks(second, groups, _known_weight(first))
        outer, inner = promoted(outer, in_blocks(first, groups, outer))
        if 1 in (prod(second.sizes), prod(first.sizes)):
            return _product(outer, inner, groups)
        ndim = max(len(second.axes), 1)
        image = inner.reshape(*inner.shape[:2], *(first.sizes or (1,))).transpose(0, 1)
        kernel = outer.reshape(groups, -1, outer.shape[1], *(second.sizes or (1,)))
        stride, dilation = _lattice(second, first)
        result = _CONV_TRANSPOSE[ndim](
            image,
            kernel.transpose(1, 2).flatten(0, 1),
            stride=stride,
            dilation=dilation,
            groups=groups,
        ).transpose(0, 1)
        return result if second.axes else result.squeeze(-1)

    return block_index(out_channels, in_channels, groups), Lazy(weight)


def _product(outer: Tensor, inner: Tensor, groups: int) -> Tensor:
    """Compose kernels of groups of which one is pointwise, as matrices."""
    sizes = outer.shape[2:] if outer[0, 0].numel() > 1 else inner.shape[2:]
    outputs, inputs = outer.shape[0] // groups, inner.shape[1]
    left = outer.reshape(groups, outputs, outer.shape[1], -1)
    right = inner.reshape(groups, outer.shape[1], -1)
    if left.shape[3] == 1:
        return torch.bmm(left.squeeze(3), right).reshape(-1, inputs, *sizes)
    # One matrix of all taps, whose rows are long, instead of one for each tap.
    mixed = torch.bmm(left.transpose(2, 3).reshape(groups, -1, outer.shape[1]), right)
    return mixed.view(groups * outputs, -1, inputs).transpose(1, 2).reshape(-1, inputs, *sizes)


def _lattice(second: AffineMap, first: AffineMap) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how far apart the taps of both kernels lie, in taps of the composed kernel."""
    stride, dilation = [], []
    for after, before in zip(second.axes, first.axes, strict=True):
        step = compose_axes(after, before).dilation
        stride.append(max(before.step // step, 1))
        dilation.append(max(before.stride * after.step // step, 1))
    return tuple(stride) or (1,), tuple(dilation) or (1,)


def in_blocks(value: AffineMap, groups: int, like: Tensor | None = None) -> Tensor:
    """Return the weight ``(O, C // groups, *k)`` of a convolution with so many groups."""
    weight = evaluated_weight(value, like)
    index = block_index(value.out_channels, value.in_channels, groups)
    if torch.equal(value.index, index):
        return weight
    blocks = weight.new_zeros(*index.shape, *weight.shape[2:])
    accumulate(blocks, weight, value.index - index[:, :1])
    return blocks


def _composed_bias(second: AffineMap, first: AffineMap) -> Lazy | None:
    inner, outer = first.bias, second.bias
    if inner is None:
        return outer

    def bias() -> Tensor:
        weight = evaluated_weight(second, inner())
        weight = weight.reshape(*weight.shape[:2], -1).sum(dim=2)
        moved = (weight * inner()[second.index.to(weight.device)]).sum(dim=1)
        return moved if outer is None else moved + outer()

    return Lazy(bias)


def _known_weight(value: AffineMap) -> Tensor | None:
    """Return a row of the weight, whose dtype and device a map without a weight takes."""
    return None if value.weight is None else value.weight.rows(0, 1)
