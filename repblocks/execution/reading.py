"""Which branches of a block have statistics that follow from the moments of its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.axis import Axis, common_axis, compose_axes
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.algebra.normalization import is_batch_norm
from repblocks.algebra.rules import has_rule
from repblocks.branches import AveragePool, Pad, Subsample, Sum
from repblocks.errors import NotFoldable

#: Covariances of larger windows cost more than the convolutions that they save.
MOST_TAPS = 27


@dataclass(frozen=True)
class NormedConv:
    """A branch: padding and stride, then a kernel or nothing, then a BatchNorm.

    Args:
        conv: A convolution without bias, or a pooling; None for the input itself.
        axes: Where the taps read, padding and stride before the convolution included.
        norm: Of the output.
    """

    conv: Conv | AveragePool | None
    axes: tuple[Axis, ...]
    norm: BatchNorm

    @property
    def taps(self) -> int:
        """Number of taps."""
        return prod([axis.size for axis in self.axes])

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is read alone, into one."""
        conv = self.conv
        if not isinstance(conv, Conv):
            return True
        return conv.in_channels == conv.out_channels == conv.groups


def branches_of(module: nn.Module) -> list[nn.Module]:
    """Return the parallel branches of a block."""
    return list(module.values()) if isinstance(module, Sum) else [module]


def read_branch(branch: nn.Module, ndim: int) -> NormedConv | None:
    """Return what a branch is, or None if it is something else."""
    parts = until_norm(branch)
    if parts is None:
        return None
    linear, norm = parts
    found = composed(linear, [Axis()] * ndim)
    return None if found is None else NormedConv(*found, norm)


def until_norm(branch: nn.Module) -> tuple[list[nn.Module], BatchNorm] | None:
    """Return the steps of a branch and the BatchNorm that it ends in; None if it ends otherwise."""
    steps = [*steps_of(branch)]
    if not steps or not is_batch_norm(norm := steps[-1]):
        return None
    return steps[:-1], norm


def before_norm(tree: nn.Module, ndim: int) -> nn.Module | None:
    """Return what comes before the last BatchNorm of a tree, or None if that is a single kernel.

    Args:
        tree: The branches of a block.
        ndim: Number of spatial axes.
    """
    if not isinstance(tree, nn.Sequential) or len(tree) < 2 or not is_batch_norm(tree[-1]):
        return None
    if read_branch(tree, ndim) is not None:
        return None
    return tree[0] if len(tree) == 2 else tree[:-1]


def composed(
    steps: Sequence[nn.Module], axes: Sequence[Axis]
) -> tuple[Conv | AveragePool | None, tuple[Axis, ...]] | None:
    """Return the one kernel of a series, and where its taps read; None if it is something else.

    Args:
        steps: The series; nothing comes after the kernel.
        axes: What is read before it.
    """
    kernel: Conv | AveragePool | None = None
    for step in steps:
        after = None if kernel is not None or not has_rule(step) else _axes_of(step, len(axes))
        if after is None:
            return None
        if any(b.pads and min(a.low, a.high) < 0 for b, a in zip(after, axes, strict=True)):
            return None  # zeros stand where the input goes on
        if isinstance(step, (Conv, AveragePool)):
            kernel = step
        axes = tuple(compose_axes(b, a) for b, a in zip(after, axes, strict=True))
    return kernel, tuple(axes)


def _axes_of(step: nn.Module, ndim: int) -> Sequence[Axis] | None:
    """Return where the taps of a step read its input; None if it is no step of a branch."""
    if isinstance(step, Pad):
        return [Axis(1, 1, low, high) for low, high in step.padding]
    if isinstance(step, Subsample):
        return [Axis(1, stride) for stride in step.stride]
    if isinstance(step, AveragePool):
        return step.axes
    if isinstance(step, Conv) and is_plain(step, ndim):
        return ConvKernel.from_conv(step).axes
    return None


def is_plain(conv: Conv, ndim: int) -> bool:
    """Tell whether a convolution has no bias, pads with zeros, and has so many axes."""
    return conv.bias is None and conv.padding_mode == "zeros" and len(conv.kernel_size) == ndim


def steps_of(branch: nn.Module) -> Iterator[nn.Module]:
    """Give the operations of a branch, one after the other."""
    if isinstance(branch, nn.Sequential):
        for child in branch:
            yield from steps_of(child)
    elif not isinstance(branch, nn.Identity):
        yield branch


@dataclass(frozen=True)
class Split:
    """The branches of a block: those that are merged, and those that run as they are."""

    merged: tuple[NormedConv, ...]
    others: tuple[nn.Module, ...]
    axes: tuple[Axis, ...]
    is_depthwise: bool


class _State:
    """What the modules of a tree are and are set to, and which weights they have."""

    def __init__(self, tree: nn.Module) -> None:
        modules = [*tree.modules()]
        self._below = modules[1:]  # not the tree itself, which could then not be forgotten
        self._names = [_names(module) for module in modules]
        self._settings = self._settings_of(modules)

    def is_that_of(self, tree: nn.Module) -> bool:
        """Tell whether a tree is as the one that was given."""
        modules = [*tree.modules()]
        try:
            return modules[1:] == self._below and self._settings_of(modules) == self._settings
        except KeyError:  # a setting is gone
            return False

    def _settings_of(self, modules: Sequence[nn.Module]) -> list[Any]:
        set_to = [of(vars(module)) for of, module in zip(self._names, modules, strict=True)]
        given = [value is None for module in modules for value in module._parameters.values()]
        return [set_to, given]


def _names(module: nn.Module) -> itemgetter[Any]:
    own = vars(module).items()
    return itemgetter("training", *(name for name, value in own if type(value) in _SETTINGS))


T = TypeVar("T")
#: What the branches were when they were last read, and what was read.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[_State, dict[Any, Any]]] = WeakKeyDictionary()
#: Types of what layers are set to: strides, paddings and the like.
_SETTINGS = frozenset({bool, int, float, str, tuple})


def remembered(read: Callable[[nn.Module, int], T], tree: nn.Module, ndim: int) -> T:
    """Return ``read(tree, ndim)``, called anew only if modules or their settings are others.

    Args:
        read: Reads the modules of a tree, but not their weights.
        tree: The branches of a block.
        ndim: Number of spatial axes.
    """
    if torch.compiler.is_compiling():  # read once for a graph, which cannot change what is known
        return read(tree, ndim)
    known = _KNOWN.get(tree)
    if known is None or not known[0].is_that_of(tree):
        known = _KNOWN[tree] = _State(tree), {}
    if read not in known[1]:
        known[1][read] = read(tree, ndim)
    return known[1][read]


def split(tree: nn.Module, ndim: int) -> Split:
    """Find the branches that can be merged into one kernel.

    Args:
        tree: The branches of a block.
        ndim: Number of spatial axes.
    """
    read = [(branch, read_branch(branch, ndim)) for branch in branches_of(tree)]
    known = [found for _, found in read if found is not None]
    is_depthwise = bool(known) and all(found.is_depthwise for found in known)
    if not is_depthwise:
        known = [found for found in known if not isinstance(found.conv, AveragePool)]
    merged: list[NormedConv] = []
    axes: tuple[Axis, ...] = ()
    for found in sorted(known, key=lambda found: (found.conv is None, found.taps)):
        wider = common_axes([*merged, found])
        most = MOST_TAPS if is_depthwise else 1
        if wider is not None and prod([axis.size for axis in wider]) <= most:
            merged.append(found)
            axes = wider
    if not merged or (merged[0].conv is None and not is_depthwise):
        return Split((), (), (), is_depthwise)
    others = tuple(branch for branch, found in read if found is None or found not in merged)
    return Split(tuple(merged), others, axes, is_depthwise)


def common_axes(branches: Sequence[NormedConv]) -> tuple[Axis, ...] | None:
    """Return the axes that hold the taps of all branches, if they read in the same groups."""
    if len({branch.conv.groups for branch in branches if isinstance(branch.conv, Conv)}) > 1:
        return None
    return holding([branch.axes for branch in branches])


def holding(each: Sequence[tuple[Axis, ...]]) -> tuple[Axis, ...] | None:
    """Return the axes that hold the taps of several, or None if there are none."""
    try:
        return tuple(map(common_axis, zip(*each, strict=True)))
    except NotFoldable:
        return None
