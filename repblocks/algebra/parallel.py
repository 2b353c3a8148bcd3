"""Parallel branches: their sum (paradigms 2 and 4) and their concatenation (paradigms 3 and 4).

Kernels of different sizes are brought to one size by zeros, at the place where their taps read.

Source:
    Ding et al., ACNet, ICCV 2019, section 3.3, https://arxiv.org/abs/1908.03930
    Ding et al., Diverse Branch Block, CVPR 2021, section 3.2, https://arxiv.org/abs/2103.13425
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce
from math import gcd

import torch
from torch import Tensor

from repblocks.algebra.affine import (
    AffineMap,
    Lazy,
    accumulate,
    block_index,
    embed,
    evaluated_rows,
    evaluated_weight,
    merged_columns,
    promoted,
)
from repblocks.algebra.axis import Axis, common_axis
from repblocks.errors import NotFoldable


def add(*maps: AffineMap) -> AffineMap:
    """Return the sum of parallel maps of one input.

    Raises:
        NotFoldable: if their channels, output positions, output sizes or padding modes differ.
    """
    if len(maps) == 1:
        return maps[0]
    maps, axes, mode = _on_common_axes(maps)
    out_channels = {value.out_channels for value in maps}
    if len(out_channels) > 1:
        raise NotFoldable(f"The branches of a sum have {sorted(out_channels)} output channels.")
    index, columns = _common_index(maps)
    like = cache(lambda: _first_weight(maps))
    # What is as large as the sum is what the others are added to.
    is_large = [c is None and value.axes == axes for value, c in zip(maps, columns, strict=True)]
    terms = sorted(zip(maps, columns, is_large, strict=True), key=lambda term: not term[2])

    def weight(start: int, stop: int) -> Tensor:
        parts = promoted(*(evaluated_rows(value, start, stop, like()) for value, *_ in terms))
        if any(is_large):
            total = parts[0].contiguous()
        else:
            total = parts[0].new_zeros(stop - start, index.shape[1], *(axis.size for axis in axes))
        for (value, column, _), part in list(zip(terms, parts, strict=True))[any(is_large) :]:
            own = None if column is None else column[start:stop]
            accumulate(total, part, own, value.axes, axes)
        return total

    biases = [value.bias for value in maps if value.bias is not None]
    bias = Lazy(lambda: reduce(torch.add, (b() for b in biases))) if biases else None
    rows = Lazy(lambda: weight(0, index.shape[0]), weight)
    return AffineMap(maps[0].in_channels, index, rows, bias, axes, mode)


def concat(*maps: AffineMap) -> AffineMap:
    """Return the map whose output channels are those of all ``maps``, one after the other.

    Raises:
        NotFoldable: as for :func:`add`, output channels aside.
    """
    if len(maps) == 1:
        return maps[0]
    maps, axes, mode = _on_common_axes(maps)
    width = max(value.index.shape[1] for value in maps)
    index = torch.cat([_filled(value.index, width) for value in maps])

    def weight() -> Tensor:
        like = _first_weight(maps)
        parts = [embed(evaluated_weight(value, like), value.axes, axes) for value in maps]
        return torch.cat([_widened(part, width) for part in parts])

    def bias() -> Tensor:
        like = next(value.bias() for value in maps if value.bias is not None)
        return torch.cat(
            [value.bias() if value.bias else like.new_zeros(value.out_channels) for value in maps]
        )

    # Where the maps read at different places, each has one of several taps.
    is_selection = all(value.is_selection for value in maps) and all(a.size == 1 for a in axes)
    has_bias = any(value.bias is not None for value in maps)
    return AffineMap(
        maps[0].in_channels,
        index,
        None if is_selection else Lazy(weight),
        Lazy(bias) if has_bias else None,
        axes,
        mode,
    )


def _on_common_axes(
    maps: Sequence[AffineMap],
) -> tuple[tuple[AffineMap, ...], tuple[Axis, ...], str]:
    in_channels = {value.in_channels for value in maps}
    if len(in_channels) > 1:
        raise NotFoldable(f"Parallel branches read {sorted(in_channels)} input channels.")
    ndim = max(len(value.axes) for value in maps)
    raised = tuple(value.with_axes(ndim) for value in maps)
    axes = tuple(common_axis(on_axis) for on_axis in zip(*(v.axes for v in raised), strict=True))
    modes = {value.padding_mode for value in raised if any(axis.pads for axis in value.axes)}
    if len(modes) > 1:
        raise NotFoldable(f"The padding modes of parallel branches differ: {sorted(modes)}.")
    return raised, axes, modes.pop() if modes else "zeros"


def _common_index(maps: Sequence[AffineMap]) -> tuple[Tensor, list[Tensor | None]]:
    """Return an index that holds all channels, and the column that each map's column goes to."""
    index = maps[0].index
    if all(torch.equal(index, value.index) for value in maps[1:]):
        return index, [None] * len(maps)
    in_channels, out_channels = maps[0].in_channels, maps[0].out_channels
    groups = gcd(*(value.groups for value in maps))
    width = in_channels // groups
    if width <= sum(value.index.shape[1] for value in maps):
        index = block_index(out_channels, in_channels, groups)
        start = index[:, :1]
        return index, [
            None if torch.equal(value.index, index) else value.index - start for value in maps
        ]
    merged, column = merged_columns(torch.cat([value.index for value in maps], dim=1))
    return merged, list(torch.split(column, [value.index.shape[1] for value in maps], dim=1))


def _first_weight(maps: Sequence[AffineMap]) -> Tensor | None:
    """Return a row of a weight, whose dtype and device those without a weight take."""
    return next((value.weight.rows(0, 1) for value in maps if value.weight is not None), None)


def _filled(index: Tensor, width: int) -> Tensor:
    return torch.cat([index, index[:, :1].expand(-1, width - index.shape[1])], dim=1)


def _widened(weight: Tensor, width: int) -> Tensor:
    missing = weight.new_zeros(weight.shape[0], width - weight.shape[1], *weight.shape[2:])
    return torch.cat([weight, missing], dim=1)
