"""Operations that only move values: views, slices, splits, shuffles.

What a view does to the channels is found by doing it once to the numbers of the channels.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from repblocks.algebra.axis import Axis
from repblocks.algebra.serial import compose
from repblocks.algebra.special import zero_padding
from repblocks.errors import NotFoldable
from repblocks.folding.flow import Step, call, steps_in
from repblocks.folding.operation import Kind, Located, Operation
from repblocks.folding.operations import identity, operation
from repblocks.folding.resizing import larger, redo_larger

VIEWS: tuple[str, ...] = (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "transpose",
    "permute",
)
VIEWS += ("contiguous", "reshape_as", "view_as", "swapaxes", "movedim")
_VIEWS: set[Any] = {*VIEWS, *(getattr(torch, name) for name in VIEWS if name in dir(torch))}
_SQUEEZES = {"squeeze", torch.squeeze}
_OTHER_MOVES = {torch.cat, torch.concat, torch.stack, torch.detach, "detach"}
_UNBINDS = {torch.unbind, "unbind"}
_SPLITS: set[Any] = {torch.chunk, torch.split, torch.tensor_split, *_UNBINDS}
_SPLITS |= {"chunk", "split", "split_with_sizes", "tensor_split"}


@operation("clone", torch.clone, "contiguous")
def _same(step: Step) -> Operation:
    return identity(step.args[0])


@operation(*_VIEWS)
def _view(step: Step) -> Operation:
    chain = _chain_of_views(step)
    start = chain[0].args[0]
    if len(chain) > 1 and start.shape is not None and start.shape == step.shape:
        return _shuffle(start, chain)
    operand = step.args[0]
    if not isinstance(operand, Step) or operand.shape is None or step.shape is None:
        raise NotFoldable("A view of an unknown shape.")
    moves = {old: _moved(step, operand.shape, old) for old in (1, len(operand.shape) - 1)}
    if step.target in _SQUEEZES and not any(moves.values()):
        raise NotFoldable("A squeeze that does something else at another size of the input.")

    def apply(values: Mapping[Step, Located]) -> Located:
        value = values[operand]
        if value.map.axes:
            raise NotFoldable("A view of something with a spatial kernel.")
        axis = moves.get(value.axis)
        if axis is None:
            raise NotFoldable("A view that takes the channels apart.")
        return Located(value.map, axis, is_viewed=True)

    return Operation((operand,), apply, Kind.MOVE)


def is_view(step: Step) -> bool:
    """Tell whether a step is a view."""
    return step.module is None and (step.target in _VIEWS or _adds_axes(step))


def _adds_axes(step: Step) -> bool:
    """Tell whether a step is ``x[:, :, None]`` or the like, which is another unsqueeze."""
    if step.target is not operator.getitem:
        return False
    item: Any = step.args[1]
    items = item if isinstance(item, tuple) else (item,)
    kept = [one for one in items if one is not None]
    is_whole = all(
        one is Ellipsis or (isinstance(one, slice) and one == slice(None)) for one in kept
    )
    return len(kept) < len(items) and is_whole


def only_moves(step: Step) -> bool:
    """Tell whether a step only puts values elsewhere, known where or not: it is linear."""
    return is_view(step) or step.target in _OTHER_MOVES


def _chain_of_views(step: Step) -> list[Step]:
    chain = [step]
    while isinstance(chain[0].args[0], Step) and chain[0].args[0].target in _VIEWS:
        chain.insert(0, chain[0].args[0])
    return chain


def _moved(step: Step, shape: Sequence[int], old: int) -> int | None:
    """Return the axis on which a view has the channels that were on axis ``old``, in order."""
    if not 0 < old < len(shape):
        return None
    numbers = torch.arange(shape[old])
    result = _redo(step, _along(numbers, shape, old))
    for axis in (1, result.ndim - 1):
        fits = 0 < axis < result.ndim and result.shape[axis] == shape[old]
        if fits and torch.equal(result, _along(numbers, result.shape, axis)):
            known = (old, len(numbers), numbers, result.ndim, axis)
            return axis if _is_so_at_another_size(step, *known) else None
    return None


def _is_so_at_another_size(
    step: Step, old: int, channels: int, order: Tensor, ndim: int, axis: int
) -> bool:
    """Tell whether a view puts the channels of axis ``old`` so on an axis for a larger input too.

    What gives another number of them there cannot be read by the layers that follow.
    """
    sizes = larger(step.args[0], (0, old))
    found = redo_larger(step, _along(torch.arange(channels), sizes, old), step.args[0], sizes)
    if found is None or found.ndim != ndim:
        return found is None
    return found.shape[axis] != len(order) or torch.equal(found, _along(order, found.shape, axis))


def _shuffle(start: Step, chain: Sequence[Step]) -> Operation:
    """Return the reordering of channels that views of views make."""
    shape = start.shape or ()
    number = int(torch.Size((*shape[:1], *shape[2:])).numel())
    places = torch.arange(number).view(*shape[:1], 1, *shape[2:]).expand(shape)
    channels = _along(torch.arange(shape[1]), shape, 1)
    for step in chain:
        places, channels = _redo(step, places), _redo(step, channels)
    order = channels.movedim(1, 0).flatten(1)[:, 0]
    stays = torch.arange(number).view(*shape[:1], 1, *shape[2:]).expand(shape)
    if not torch.equal(places, stays) or not torch.equal(channels, _along(order, shape, 1)):
        raise NotFoldable("A view that takes the channels apart.")
    if not _shuffles_at_another_size(start, chain, order):
        raise NotFoldable("A view that does something else at another size of the input.")

    def apply(values: Mapping[Step, Located]) -> Located:
        value = values[start]
        if value.axis != 1:
            raise NotFoldable("A shuffle of channels on another axis.")
        return value.having(value.map.reordered(order))

    return Operation((start,), apply, Kind.OTHER, through=tuple(chain[:-1]))


def _shuffles_at_another_size(start: Step, chain: Sequence[Step], order: Tensor) -> bool:
    """Tell whether views reorder channels, and nothing else, where the input is larger too."""
    shape = larger(start)
    number = int(torch.Size((*shape[:1], *shape[2:])).numel())
    places = torch.arange(number).view(*shape[:1], 1, *shape[2:]).expand(shape)
    for values, expected in (
        (places, places),
        (_along(torch.arange(shape[1]), shape, 1), _along(order, shape, 1)),
    ):
        found: Tensor | None = values
        for step in chain:
            found = None if found is None else redo_larger(step, found, start, shape)
        if found is not None and not torch.equal(found, expected):
            return False
    return True


def channels_after(view: Step, shape: Sequence[int]) -> Tensor:
    """Say of which channel each one on the second axis is after a view; ``shape`` is before it.

    Raises:
        NotFoldable: if one is of several channels.
    """
    result = _redo(view, _along(torch.arange(shape[1]), shape, 1))
    order = result.movedim(1, 0).flatten(1)[:, 0] if result.ndim > 1 else result
    if result.ndim < 2 or not torch.equal(result, _along(order, result.shape, 1)):
        raise NotFoldable("A view that puts several channels together.")
    if not _is_so_at_another_size(view, 1, shape[1], order, result.ndim, 1):
        raise NotFoldable("A view that does something else at another size of the input.")
    return order


def _along(numbers: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    view = [1] * len(shape)
    view[axis] = -1
    return numbers.view(view).expand(*shape).contiguous()


def _redo(step: Step, tensor: Tensor) -> Tensor:
    """Run a view on other values, with the sizes that it had in the example."""
    _, *args = map_aggregate(step.args, _example)
    kwargs = map_aggregate(dict(step.kwargs), _example)
    # The values of a view and of a reshape are the same, and the numbers may lie otherwise.
    target = "reshape" if step.target == "view" else step.target
    result: Tensor = call(target, (tensor, *args), kwargs)
    return result


def _example(leaf: Any) -> Any:
    if not isinstance(leaf, Step):
        return leaf
    return leaf.value if leaf.shape is None else torch.empty(leaf.shape)


@operation(operator.getitem)
def _item(step: Step) -> Operation:
    source, item = step.args
    if not isinstance(source, Step):
        raise NotFoldable("An item of something that is no activation.")
    if _adds_axes(step):
        return _view(step)
    if source.target in _SPLITS and isinstance(item, int):
        return _part_of_split(source, item)
    return _slice(source, item)


def _slice(source: Step, item: Any) -> Operation:
    if source.shape is None:
        raise NotFoldable("A slice of an unknown shape.")
    items: tuple[Any, ...] = item if isinstance(item, tuple) else (item,)
    if Ellipsis in items:
        place = items.index(Ellipsis)
        rest = (slice(None),) * (len(source.shape) - len(items) + 1)
        items = (*items[:place], *rest, *items[place + 1 :])
    if not all(isinstance(one, slice) for one in items) or any(steps_in(items)):
        raise NotFoldable("A slice that drops an axis, or depends on the size of the input.")
    items += (slice(None),) * (len(source.shape) - len(items))
    if items[0] != slice(None):
        raise NotFoldable("A slice of the batch.")
    channels = range(source.shape[1])[items[1]]
    if not channels:
        raise NotFoldable("A slice without a channel.")
    order = torch.tensor(list(channels))
    axes = [_sliced(one) for one in items[2:]]
    return _selection(source, order, axes)


def _sliced(item: slice) -> Axis:
    """Return the axis of a slice that is the same for every size: cropped ends and a step."""
    start, stop, step = item.start or 0, item.stop, item.step or 1
    if start < 0 or step < 1 or (stop is not None and stop >= 0):
        raise NotFoldable("A slice whose place depends on the size of the input.")
    return Axis(1, step, -start, stop or 0)


def _selection(
    source: Step, order: Tensor, axes: Sequence[Axis], through: tuple[Step, ...] = ()
) -> Operation:
    is_spatial = any(axis != Axis() for axis in axes)

    def apply(values: Mapping[Step, Located]) -> Located:
        value = values[source]
        if value.axis != 1:
            raise NotFoldable("A slice along another axis than the channels.")
        result = value.map.reordered(order)
        return value.having(
            compose(zero_padding(len(order), axes), result) if is_spatial else result
        )

    return Operation((source,), apply, Kind.OTHER, through=through)


def _part_of_split(split: Step, item: int) -> Operation:
    source = split.args[0]
    if not isinstance(source, Step) or source.shape is None or len(source.shape) < 2:
        raise NotFoldable("A split of an unknown shape.")
    if _split_axis(split) % len(source.shape) != 1:
        raise NotFoldable("A split along another axis than the channels.")
    part = _redo(split, _along(torch.arange(source.shape[1]), source.shape, 1))[item]
    order = part.movedim(1, 0).flatten(1)[:, 0] if part.ndim > 1 and part.numel() else part
    is_whole = part.shape[:1] == source.shape[:1] and part.shape[2:] == source.shape[2:]
    if part.ndim != len(source.shape) or not is_whole or not part.numel():
        raise NotFoldable("A split that takes the channels apart.")
    return _selection(source, order, [], (split,))


def _split_axis(split: Step) -> Any:
    place = 1 if split.target in _UNBINDS else 2
    default = split.args[place] if len(split.args) > place else 0
    return split.kwargs.get("dim", split.kwargs.get("axis", default))
