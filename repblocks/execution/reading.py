"""Which branches of a block have statistics that follow from the moments of its input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.axis import Axis, common_axis, compose_axes
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.algebra.normalization import is_batch_norm
from repblocks.algebra.rules import has_rule
from repblocks.branches import Pad, Subsample, Sum
from repblocks.errors import NotFoldable

#: Covariances of larger windows cost more than the convolutions that they save.
MOST_TAPS = 27


@dataclass(frozen=True)
class NormedConv:
    """A branch: padding and stride, then a convolution or nothing, then a BatchNorm.

    Args:
        conv: Without bias; None for the input itself.
        axes: Where the taps read, padding and stride before the convolution included.
        norm: Of the output.
    """

    conv: Conv | None
    axes: tuple[Axis, ...]
    norm: BatchNorm

    @property
    def taps(self) -> int:
        """Number of taps."""
        return prod(axis.size for axis in self.axes)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is read alone, into one."""
        conv = self.conv
        return conv is None or conv.in_channels == conv.out_channels == conv.groups


def branches_of(module: nn.Module) -> list[nn.Module]:
    """Return the parallel branches of a block."""
    return list(module.values()) if isinstance(module, Sum) else [module]


def read_branch(branch: nn.Module, ndim: int) -> NormedConv | None:
    """Return what a branch is, or None if it is something else."""
    *linear, norm = _steps(branch)
    if not is_batch_norm(norm):
        return None
    axes, conv = (Axis(),) * ndim, None
    for step in linear:
        if conv is not None or not has_rule(step):
            return None
        if isinstance(step, Pad):
            after = [Axis(1, 1, low, high) for low, high in step.padding]
        elif isinstance(step, Subsample):
            after = [Axis(1, stride) for stride in step.stride]
        elif isinstance(step, Conv) and _is_plain(step, ndim):
            conv, after = step, [*ConvKernel.from_conv(step).axes]
        else:
            return None
        if any(b.pads and min(a.low, a.high) < 0 for b, a in zip(after, axes, strict=True)):
            return None  # zeros stand where the input goes on
        axes = tuple(compose_axes(b, a) for b, a in zip(after, axes, strict=True))
    return NormedConv(conv, axes, norm)


def _is_plain(conv: Conv, ndim: int) -> bool:
    return conv.bias is None and conv.padding_mode == "zeros" and len(conv.kernel_size) == ndim


def _steps(branch: nn.Module) -> Iterator[nn.Module]:
    if isinstance(branch, nn.Sequential):
        for child in branch:
            yield from _steps(child)
    elif not isinstance(branch, nn.Identity):
        yield branch


@dataclass(frozen=True)
class Split:
    """The branches of a block: those that are merged, and those that run as they are."""

    merged: tuple[NormedConv, ...]
    others: tuple[nn.Module, ...]
    axes: tuple[Axis, ...]
    is_depthwise: bool


#: What the branches were when they were last read: the same modules are split in the same way.
_SPLITS: WeakKeyDictionary[nn.Module, tuple[list[nn.Module], Split]] = WeakKeyDictionary()


def split(tree: nn.Module, modules: list[nn.Module], ndim: int) -> Split:
    """Find the branches that can be merged into one kernel.

    Args:
        tree: The branches of a block.
        modules: All modules of the tree, itself first.
        ndim: Number of spatial axes.
    """
    below = modules[1:]  # not the tree itself, which could then not be forgotten
    known = _SPLITS.get(tree)
    if known is None or known[0] != below:
        known = _SPLITS[tree] = below, _split(tree, ndim)
    return known[1]


def _split(tree: nn.Module, ndim: int) -> Split:
    read = [(branch, read_branch(branch, ndim)) for branch in branches_of(tree)]
    known = [found for _, found in read if found is not None]
    is_depthwise = bool(known) and all(found.is_depthwise for found in known)
    merged: list[NormedConv] = []
    axes: tuple[Axis, ...] = ()
    for found in sorted(known, key=lambda found: (found.conv is None, found.taps)):
        wider = _common_axes([*merged, found])
        most = MOST_TAPS if is_depthwise else 1
        if wider is not None and prod(axis.size for axis in wider) <= most:
            merged.append(found)
            axes = wider
    if not merged or (merged[0].conv is None and not is_depthwise):
        return Split((), (), (), is_depthwise)
    others = tuple(branch for branch, found in read if found is None or found not in merged)
    return Split(tuple(merged), others, axes, is_depthwise)


def _common_axes(branches: Sequence[NormedConv]) -> tuple[Axis, ...] | None:
    """Return the axes that hold the taps of all branches, if they read in the same groups."""
    if len({branch.conv.groups for branch in branches if branch.conv is not None}) > 1:
        return None
    try:
        return tuple(map(common_axis, zip(*(branch.axes for branch in branches), strict=True)))
    except NotFoldable:
        return None
