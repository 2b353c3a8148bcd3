"""Which branches of a block follow from the moments of dense windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Conv
from repblocks.branches import AveragePool, BatchNormPad, Sum
from repblocks.execution.reading import (
    MOST_TAPS,
    branches_of,
    composed,
    holding,
    is_plain,
    steps_of,
    until_norm,
)


@dataclass(frozen=True)
class DenseBranch:
    """A branch: perhaps a pointwise map, normalised and padded; a kernel; a BatchNorm.

    Args:
        inner: A pointwise convolution, the input itself, or a sum of these; None for no such map.
        pad: What normalises and pads the inner map; None for no such map.
        outer: The kernel; None for its input itself.
        axes: Where the taps read the input, padding included.
        norm: Of the output.
    """

    inner: nn.Module | None
    pad: BatchNormPad | None
    outer: Conv | AveragePool | None
    axes: tuple[Axis, ...]
    norm: BatchNorm

    @property
    def taps(self) -> int:
        """Number of taps whose weights differ."""
        return prod([axis.size for axis in self.axes]) if isinstance(self.outer, Conv) else 1


@dataclass(frozen=True)
class DenseSplit:
    """The branches of a block: those that follow from dense windows, and the others.

    Args:
        merged: The first.
        others: The others.
        axes: Where the taps of the window read.
        groups: Of every kernel.
        centre: The tap that reads each position of an image once.
    """

    merged: tuple[DenseBranch, ...]
    others: tuple[nn.Module, ...]
    axes: tuple[Axis, ...]
    groups: int
    centre: int


def read_dense(branch: nn.Module, ndim: int) -> DenseBranch | None:
    """Return what a branch is, or None if it is something else."""
    parts = until_norm(branch)
    if parts is None:
        return None
    linear, norm = parts
    inner: nn.Module | None = None
    pad: BatchNormPad | None = None
    axes = [Axis()] * ndim
    if len(linear) > 1 and isinstance(linear[1], BatchNormPad) and _is_pointwise(linear[0], ndim):
        inner, pad, linear = linear[0], linear[1], linear[2:]
        axes = [Axis(1, 1, low, high) for low, high in pad.padding]
    found = composed(linear, axes)
    return None if found is None else DenseBranch(inner, pad, *found, norm)


def _is_pointwise(module: nn.Module, ndim: int) -> bool:
    if isinstance(module, Sum):
        return all(_is_pointwise(child, ndim) for child in module.values())
    steps = [*steps_of(module)]
    if not steps:
        return True
    conv = steps[0]
    if len(steps) > 1 or not isinstance(conv, Conv) or not is_plain(conv, ndim):
        return False
    return {*conv.kernel_size, *conv.stride} == {1} and not any(conv.padding)


def split_dense(tree: nn.Module, ndim: int) -> DenseSplit | None:
    """Find the branches that one dense kernel can compute, or None if that cannot pay.

    Args:
        tree: The branches of a block.
        ndim: Number of spatial axes.
    """
    if ndim != 2:
        return None
    read = [(branch, read_dense(branch, ndim)) for branch in branches_of(tree)]
    known = tuple(found for _, found in read if found is not None)
    axes, groups = holding([branch.axes for branch in known]), _groups(known)
    centre = None if axes is None else _centre(axes)
    if axes is None or groups is None or centre is None or not _saves_kernels(known, axes):
        return None
    return DenseSplit(known, tuple(b for b, found in read if found is None), axes, groups, centre)


def _groups(branches: Sequence[DenseBranch]) -> int | None:
    """Return the groups of all convolutions, or None if they differ."""
    parts = [part for b in branches for part in (b.inner, b.outer) if part is not None]
    convs = [conv for part in parts for conv in part.modules() if isinstance(conv, Conv)]
    groups = {conv.groups for conv in convs}
    return groups.pop() if len(groups) == 1 else None


def _centre(axes: Sequence[Axis]) -> int | None:
    """Return the tap that reads each position of an image once, in order, or None."""
    number = 0
    for axis in axes:
        place, rest = divmod(axis.low, axis.dilation)
        keeps_size = axis.stride == 1 and axis.slack == -1
        if not keeps_size or rest or not 0 <= place < axis.size or axis.high < 0:
            return None
        number = number * axis.size + place
    return number


def _saves_kernels(branches: Sequence[DenseBranch], axes: Sequence[Axis]) -> bool:
    """Tell whether there are two kernels of the size of the window at least, and not depthwise."""
    window = prod([axis.size for axis in axes])
    kernels = sum(branch.taps for branch in branches if branch.taps > 1)
    is_depthwise = all(_is_depthwise(branch) for branch in branches)
    return window <= MOST_TAPS and kernels >= 2 * window and not is_depthwise


def _is_depthwise(branch: DenseBranch) -> bool:
    outer = branch.outer
    if branch.inner is not None or not isinstance(outer, Conv):
        return branch.inner is None
    return outer.in_channels == outer.out_channels == outer.groups
