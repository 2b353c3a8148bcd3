"""What a view does at another size of the input than the example's.

A view may do at the example's size what it does at no other: ``squeeze`` drops an axis that happens
to be one, and at 1x1 any order of the axes is the same.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn import functional

from repblocks.algebra.normalization import forward_of
from repblocks.folding.flow import MOVED, Step, call
from repblocks.folding.operation import bind

_ADAPTIVE = {
    *(nn.AdaptiveAvgPool1d.forward, nn.AdaptiveAvgPool2d.forward, nn.AdaptiveAvgPool3d.forward),
    *(nn.AdaptiveMaxPool1d.forward, nn.AdaptiveMaxPool2d.forward, nn.AdaptiveMaxPool3d.forward),
    *(functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d),
    functional.adaptive_avg_pool3d,
}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
_SQUEEZES = {torch.squeeze, "squeeze"}
_UNSQUEEZES = {torch.unsqueeze, "unsqueeze"}
_ELEMENTWISE = {functional.relu, torch.relu, "relu", functional.batch_norm, functional.dropout}
_ELEMENTWISE |= {operator.add, operator.mul, "contiguous", "clone", "detach", MOVED}
_ELEMENTWISE_MODULES = {"activation", "batchnorm", "dropout"}


def larger(step: Step, kept: Sequence[int] = (0, 1)) -> tuple[int, ...]:
    """Return the shape of a step at a larger size of the input; some axes are kept."""
    return tuple(
        size if axis in kept or is_one(step, axis) else 2 * size
        for axis, size in enumerate(step.shape or ())
    )


def redo_larger(view: Step, tensor: Tensor, start: Step, shape: Sequence[int]) -> Tensor | None:
    """Run a view on another tensor, at another size of the input; None if it does not take it.

    Args:
        view: The view.
        tensor: What it is run on.
        start: What it is a view of, or a view of a view of.
        shape: The larger shape of ``start``, which others of its size have too.
    """

    def at(leaf: Any) -> Any:
        return _evaluated(leaf, start, shape) if isinstance(leaf, Step) else leaf

    _, *args = map_aggregate(view.args, at)
    target = "reshape" if view.target == "view" else view.target
    try:
        result: Tensor = call(target, (tensor, *args), map_aggregate(dict(view.kwargs), at))
    except Exception:  # noqa: BLE001 # whatever a call raises on such a size
        return None
    return result


def _evaluated(leaf: Step, start: Step, shape: Sequence[int]) -> Any:
    """Return a size, or a tensor whose size is read, as it is at the larger size."""
    if leaf.shape is not None:
        is_alike = start.shape is not None and leaf.shape[2:] == start.shape[2:]
        sizes = shape[2:] if is_alike else leaf.shape[2:]
        return torch.empty((*leaf.shape[:2], *sizes), device="meta")
    if not leaf.operands:
        return leaf.value
    args, kwargs = map_aggregate(
        (leaf.args, dict(leaf.kwargs)),
        lambda one: _evaluated(one, start, shape) if isinstance(one, Step) else one,
    )
    return call(leaf.target, args, kwargs)


def is_one(step: Step, axis: int) -> bool:
    """Tell whether an axis has one position whatever the size of the input is."""
    function = step.target if step.module is None else forward_of(step.module)
    operand = step.args[0] if step.args else None
    if step.shape is None or step.shape[axis] != 1 or not isinstance(operand, Step):
        return False
    if function in _ADAPTIVE:
        return _adaptive_size(step, axis, len(step.shape)) == 1
    if function in _REDUCTIONS:
        return _keeps(step, axis, operand)
    if function in _SQUEEZES | _UNSQUEEZES:
        before = _before(step, axis, operand)
        return before is None or is_one(operand, before)
    return _is_elementwise(step, operand) and is_one(operand, axis)


def _adaptive_size(step: Step, axis: int, ndim: int) -> Any:
    given: Mapping[str, Any] = (
        vars(step.module) if step.module is not None else bind(step, "input", "output_size")
    )
    sizes = given["output_size"]
    if not isinstance(sizes, tuple | list):
        return sizes if axis >= 2 else None  # spatial axes follow the channels
    return sizes[axis - ndim] if ndim - axis <= len(sizes) else None


def _keeps(step: Step, axis: int, operand: Step) -> bool:
    given = bind(step, "input", "dim", keepdim=False)
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    is_known = isinstance(dims, tuple | list) and operand.shape is not None
    reduced = {d % len(operand.shape or ()) for d in dims or ()} if is_known else set()
    if given["keepdim"] is True:
        return axis in reduced or is_one(operand, axis)
    kept = [old for old in range(len(operand.shape or ())) if old not in reduced]
    return bool(reduced) and is_one(operand, kept[axis])


def _before(step: Step, axis: int, operand: Step) -> int | None:
    """Return which axis it was before a squeeze or unsqueeze; None for a new one."""
    if operand.shape is None or step.shape is None:
        return axis
    given = bind(step, "input", dim=None)["dim"]
    ndim = len(operand.shape)
    if step.target in _UNSQUEEZES:
        place = given % (ndim + 1)
        return None if axis == place else axis - (axis > place)
    dims = range(ndim) if given is None else [given] if isinstance(given, int) else given
    dropped = {d % ndim for d in dims if operand.shape[d] == 1}
    return [old for old in range(ndim) if old not in dropped][axis]


def _is_elementwise(step: Step, operand: Step) -> bool:
    if operand.shape is None or step.shape is None or len(operand.shape) != len(step.shape):
        return False
    module = step.module
    if module is None:
        return step.target in _ELEMENTWISE
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        is_unpadded = module.padding == "valid" or set(module.padding) == {0}
        return set(module.kernel_size) == {1} and is_unpadded
    name = type(module).__module__
    return name.startswith("torch.nn.modules.") and name.split(".")[-1] in _ELEMENTWISE_MODULES
