"""The value that everything is computed in: an affine map from input channels to output channels.

Shapes: O output channels, C input channels, M input channels read by one output channel, ``*k`` the
number of taps on each spatial axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import gcd
from types import EllipsisType

import torch
from torch import Tensor

from repblocks.algebra.axis import Axis
from repblocks.errors import NotFoldable


class Lazy:
    """A tensor that is computed when it is first asked for, and then kept.

    Args:
        compute: Computes the tensor.
        part: Computes its rows ``start`` to ``stop - 1`` alone, in memory of their own, for tensors
            that are too large to be computed whole more often than needed; by default the whole
            tensor is.
    """

    def __init__(
        self, compute: Callable[[], Tensor], part: Callable[[int, int], Tensor] | None = None
    ) -> None:
        self._compute = compute
        self._part = part

    @cached_property
    def _value(self) -> Tensor:
        return self._compute()

    def __call__(self) -> Tensor:
        """Return the value."""
        return self._value

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some rows of the value, in memory of their own."""
        if self._part is None or "_value" in self.__dict__:
            return self._value[start:stop].clone()
        return self._part(start, stop)


@dataclass(frozen=True, eq=False)
class AffineMap:
    """For each output channel: the input channels it reads, their kernels, and a bias.

    The index makes slices, concatenations, channel shuffles, groups and depthwise kernels one
    thing. An input channel may stand twice in a row of it: its kernels add up. The weights are
    evaluated late, so that the structure and the cost of a map are known before any arithmetic.

    Args:
        in_channels: C.
        index: ``(O, M)`` int64 on the CPU, the input channels that each output channel reads.
        weight: ``(O, M, *k)``; None for ones, so that the map only selects channels.
        bias: ``(O,)``, or None for zeros.
        axes: The spatial axes; none for a map that acts on channels alone, with any number of
            spatial axes.
        padding_mode: One of ``"zeros"``, ``"reflect"``, ``"replicate"``, ``"circular"``.
    """

    in_channels: int
    index: Tensor
    weight: Lazy | None = None
    bias: Lazy | None = None
    axes: tuple[Axis, ...] = ()
    padding_mode: str = "zeros"

    @classmethod
    def identity(cls, channels: int) -> AffineMap:
        """Return the map that gives its input back."""
        return cls(channels, torch.arange(channels).unsqueeze(1))

    @property
    def out_channels(self) -> int:
        """O."""
        return self.index.shape[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of taps on each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def is_selection(self) -> bool:
        """Whether each output channel is an input channel, unchanged."""
        return self.weight is None and self.bias is None and self.index.shape[1] == 1

    @cached_property
    def groups(self) -> int:
        """The largest number of equal contiguous groups that no output channel reads across."""
        most = gcd(self.out_channels, self.in_channels)
        if int(self.index[0].max()) == self.in_channels - 1 and int(self.index[0].min()) == 0:
            return 1  # The first row alone crosses all borders.
        own = torch.arange(self.out_channels) // (self.out_channels // most)
        width = self.in_channels // most
        low = torch.minimum(self.index.amin(dim=1) // width, own)
        high = torch.maximum(self.index.amax(dim=1) // width, own)
        # Each row forbids a border between two groups above its lowest and up to its highest.
        steps = torch.zeros(most + 1, dtype=torch.int64)
        steps.index_add_(0, low + 1, torch.ones_like(low))
        steps.index_add_(0, high + 1, -torch.ones_like(high))
        is_crossed = steps.cumsum(0)[:most] > 0
        sizes = torch.arange(1, most + 1)
        divisors = sizes[most % sizes == 0].tolist()
        return next(most // size for size in divisors if not is_crossed[size::size].any())

    def rows(self, start: int, stop: int) -> AffineMap:
        """Return the map that gives only the output channels ``start`` to ``stop - 1``."""
        weight, bias = self.weight, self.bias
        return replace(
            self,
            index=self.index[start:stop],
            weight=None if weight is None else Lazy(lambda: weight.rows(start, stop)),
            bias=None if bias is None else Lazy(lambda: bias()[start:stop]),
        )

    def reordered(self, order: Tensor) -> AffineMap:
        """Return the map whose output channel ``i`` is this map's ``order[i]``."""
        weight, bias = self.weight, self.bias
        return replace(
            self,
            index=self.index[order],
            weight=None if weight is None else Lazy(lambda: weight()[order]),
            bias=None if bias is None else Lazy(lambda: bias()[order]),
        )

    def with_axes(self, ndim: int) -> AffineMap:
        """Return the same map with ``ndim`` spatial axes, which a map on channels takes on.

        Raises:
            NotFoldable: if the map has spatial axes already, and another number of them.
        """
        if len(self.axes) == ndim:
            return self
        if self.axes:
            raise NotFoldable(f"A {len(self.axes)}-d map cannot be used in {ndim} dimensions.")
        weight = self.weight
        return replace(
            self,
            axes=(Axis(),) * ndim,
            weight=None if weight is None else Lazy(lambda: weight()[(..., *(None,) * ndim)]),
        )


def block_index(out_channels: int, in_channels: int, groups: int) -> Tensor:
    """Return the index ``(O, C // groups)`` of a convolution with equal contiguous groups."""
    width = in_channels // groups
    channels = torch.arange(in_channels).view(groups, 1, width)
    return channels.expand(groups, out_channels // groups, width).reshape(out_channels, width)


def merged_columns(index: Tensor) -> tuple[Tensor, Tensor]:
    """Merge equal channels in each row of ``index (O, M)``.

    Returns:
        The shorter index ``(O, M')``, rows of fewer channels filled with their own first one, and
        the column ``(O, M)`` that each old column goes to.
    """
    ordered, order = index.sort(dim=1)
    is_new = torch.zeros_like(ordered)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    column = torch.empty_like(index).scatter(1, order, is_new.cumsum(dim=1))
    width = int(column.max()) + 1
    merged = ordered[:, :1].repeat(1, width).scatter(1, column, index)
    return merged, column


def accumulate(
    target: Tensor,
    weight: Tensor,
    column: Tensor | None = None,
    old: Sequence[Axis] = (),
    new: Sequence[Axis] = (),
) -> None:
    """Add ``weight (O, M, *k)`` to ``target (O, M', *k')``, in place.

    Args:
        target: What is added to.
        weight: What is added.
        column: ``(O, M)``, the column that each one goes to; None for the same.
        old: The axes of the weight; none for those of the target.
        new: The axes of the target, which hold the taps of the old ones.
    """
    taps: list[slice | EllipsisType] = [...]
    for before, after in zip(old, new, strict=True):
        start = (after.low - before.low) // after.dilation
        step = max(before.step // after.dilation, 1)
        taps.append(slice(start, start + (before.size - 1) * step + 1, step))
    part = target[tuple(taps)]
    if column is None:
        part.add_(weight)
    else:
        column = column.to(weight.device).view(*column.shape, *(1,) * (weight.ndim - 2))
        part.scatter_add_(1, column.expand_as(weight), weight)


def embed(weight: Tensor, old: Sequence[Axis], new: Sequence[Axis]) -> Tensor:
    """Write the taps of ``weight (O, M, *k)`` into zeros at their places on the axes ``new``."""
    if tuple(old) == tuple(new):
        return weight
    target = weight.new_zeros(*weight.shape[:2], *(axis.size for axis in new))
    accumulate(target, weight, None, old, new)
    return target


def evaluated_weight(value: AffineMap, like: Tensor | None = None) -> Tensor:
    """Return the weight ``(O, M, *k)``, with ones of the dtype and device of ``like`` for None."""
    if value.weight is not None:
        return value.weight()
    shape = (*value.index.shape, *value.sizes)
    return torch.ones(shape) if like is None else like.new_ones(shape)


def evaluated_rows(value: AffineMap, start: int, stop: int, like: Tensor | None = None) -> Tensor:
    """Return some rows of the weight, as :func:`evaluated_weight` does."""
    if value.weight is not None:
        return value.weight.rows(start, stop)
    return evaluated_weight(value.rows(start, stop), like)


def promoted(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors in the widest of their dtypes: ones of a known kernel come in any."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor.to(dtype) for tensor in tensors]


def tensor_for(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Return the tensor with the dtype and on the device of ``like``; as it is for None."""
    return tensor if like is None else tensor.to(like)
