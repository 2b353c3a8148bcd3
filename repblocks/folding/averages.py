"""Steps that average positions in windows that depend on the size of the input, or on the border.

They are no map of what they read, but the weights of each window sum to one: a scale and shift of
each channel passes them unchanged, forward and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from repblocks.algebra.normalization import forward_of
from repblocks.algebra.rules import check_call
from repblocks.errors import NotFoldable
from repblocks.folding.flow import Step
from repblocks.folding.operation import Kind, Located, Operation, bind

_ADAPTIVE: dict[Any, int] = {
    **dict.fromkeys((nn.AdaptiveAvgPool1d.forward, torch.adaptive_avg_pool1d), 1),
    **dict.fromkeys((nn.AdaptiveAvgPool2d.forward, functional.adaptive_avg_pool2d), 2),
    **dict.fromkeys((nn.AdaptiveAvgPool3d.forward, functional.adaptive_avg_pool3d), 3),
}
_POOLS: dict[Any, int] = {
    **dict.fromkeys((nn.AvgPool1d.forward, functional.avg_pool1d, torch.avg_pool1d), 1),
    **dict.fromkeys((nn.AvgPool2d.forward, functional.avg_pool2d), 2),
    **dict.fromkeys((nn.AvgPool3d.forward, functional.avg_pool3d), 3),
}
_MEANS = {torch.mean, "mean"}

#: What an operation does to the axis of the channels, or raises ``NotFoldable``.
Axes = Callable[[int], int]


def average(step: Step) -> Operation | None:
    """Return the operation of a step that averages positions, if it does."""
    try:
        axis = averaged(step, 1)
    except NotFoldable:
        axis = None
    operand = _read(step)
    if operand is None or (axis is None and not _is_average_of_others(step, operand)):
        return None

    def apply(values: Mapping[Step, Located]) -> Located:
        del values
        raise NotFoldable("The windows of an average depend on the size of the input.")

    return Operation((operand,), apply, Kind.OTHER, join="average" if axis == 1 else "")


def _is_average_of_others(step: Step, operand: Step) -> bool:
    """Tell whether it averages along other axes than the last, which may be the channels."""
    try:
        averaged(step, len(operand.shape or ()) - 1)
    except NotFoldable:
        return False
    return True


def averaged(step: Step, axis: int) -> int:
    """Return the axis on which the channels are after a step that averages positions.

    Args:
        step: The step.
        axis: The axis of what it reads that holds the channels.

    Raises:
        NotFoldable: if it does anything else.
    """
    operand = _read(step)
    function = step.target if step.module is None else forward_of(step.module)
    if operand is None or operand.shape is None or operand.dtype != step.dtype:
        raise NotFoldable("It reads no activation of a known shape.")
    if step.module is not None:
        check_call(step.module)
    if function in _MEANS:
        return _after_mean(step, operand.shape, axis)
    ndim = _ADAPTIVE.get(function) or _POOLS.get(function)
    if ndim is None or len(operand.shape) != ndim + 2 or axis != 1:
        raise NotFoldable("It is no average of positions.")
    if function in _POOLS and not _divides_by_its_window(step):
        raise NotFoldable("The weights of its windows do not sum to one.")
    return 1


def _read(step: Step) -> Step | None:
    given = step.args[0] if step.args else step.kwargs.get("input")
    return given if isinstance(given, Step) else None


def _divides_by_its_window(step: Step) -> bool:
    given: Mapping[str, Any] = (
        vars(step.module)
        if step.module is not None
        else bind(
            step,
            *("input", "kernel_size"),
            stride=None,
            padding=0,
            ceil_mode=False,
            count_include_pad=True,
        )
    )
    padding = given["padding"]
    is_unpadded = not any(padding) if isinstance(padding, tuple | list) else padding == 0
    has_divisor = given.get("divisor_override") is not None or len(step.args) > 6
    return not has_divisor and (given["count_include_pad"] is False or is_unpadded)


def _after_mean(step: Step, shape: tuple[int, ...], axis: int) -> int:
    given = bind(step, "input", "dim", keepdim=False, dtype=None)
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, tuple | list) or not all(isinstance(dim, int) for dim in dims):
        raise NotFoldable("A mean over all, or over axes that are not known.")
    reduced = {dim % len(shape) for dim in dims}
    if not reduced or reduced & {0, axis} or given["dtype"] is not None:
        raise NotFoldable("A mean over the batch or the channels.")
    return axis if given["keepdim"] else axis - sum(dim < axis for dim in reduced)
