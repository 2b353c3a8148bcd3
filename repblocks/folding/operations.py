"""The operations that the folding of a whole model knows: one table, by function or by method.

What a module does stands in the table of the algebra, which the blocks use too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from repblocks.algebra.affine import AffineMap, Lazy
from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Conv
from repblocks.algebra.normalization import is_batch_norm
from repblocks.algebra.rules import apply as apply_rule
from repblocks.algebra.rules import has_rule
from repblocks.algebra.special import padding, scale
from repblocks.errors import NotFoldable
from repblocks.folding.flow import Step, steps_in
from repblocks.folding.operation import Kind, Located, Operation, bind, numel

Rule = Callable[[Step], Operation]
OPERATIONS: dict[Any, Rule] = {}


def operation(*targets: Any) -> Callable[[Rule], Rule]:
    """Register what these functions and methods do."""

    def register(rule: Rule) -> Rule:
        OPERATIONS.update(dict.fromkeys(targets, rule))
        return rule

    return register


def describe(step: Step) -> Operation:
    """Say what a step does to affine maps.

    Raises:
        NotFoldable: if it is not affine in what it reads, or not in a way that is known.
    """
    found = _module(step, step.module) if step.module is not None else _rule(step)(step)
    _check_numbers(step, found)
    return found


def _rule(step: Step) -> Rule:
    rule = OPERATIONS.get(step.target)
    if rule is None:
        raise NotFoldable(f"There is no rule for {getattr(step.target, '__name__', step.target)}.")
    return rule


def _check_numbers(step: Step, found: Operation) -> None:
    """Check that a step computes in real numbers of one kind, as the maps do."""
    kinds = {one.dtype for one in (step, *found.operands) if one.dtype is not None}
    if len(kinds) > 1:
        raise NotFoldable("Its output has another dtype than its input.")
    constants: list[Tensor] = [] if step.module is None else [*step.module.parameters()]
    constants += [a for a in (*step.args, *step.kwargs.values()) if isinstance(a, Tensor)]
    is_layer = found.kind is Kind.WEIGHT
    for dtype in (*kinds, *(t.dtype for t in constants)):
        if dtype.is_complex or (is_layer and not dtype.is_floating_point):
            raise NotFoldable(f"It computes in {str(dtype).removeprefix('torch.')} numbers.")


def like() -> Tensor:
    """Return a tensor of the dtype that folding computes in."""
    return torch.empty(0, dtype=torch.float64)


def _module(step: Step, module: nn.Module) -> Operation:
    if not has_rule(module):
        raise NotFoldable(f"There is no rule for {type(module).__name__}.")
    if len(step.args) != 1 or step.kwargs or not isinstance(step.args[0], Step):
        raise NotFoldable(f"{type(module).__name__} is called with more than one activation.")
    operand = step.args[0]
    needed = _channel_axis(module, operand)

    def apply(values: Mapping[Step, Located]) -> Located:
        value = values[operand]
        if needed is not None and value.axis != needed:
            raise NotFoldable("The channels lie on another axis.")
        return _on_batch(operand, value.having(apply_rule(module, value.map, like())))

    return Operation((operand,), apply, *_kind_and_macs(step, module))


def _kind_and_macs(step: Step, module: nn.Module) -> tuple[Kind, int]:
    """Say what a module is to the planner.

    Raises:
        NotFoldable: if no input makes it a map.
    """
    if isinstance(module, Conv | nn.Linear):
        size = numel(step.shape) or module.weight.shape[0]
        return Kind.WEIGHT, size * module.weight[0].numel()
    if is_batch_norm(module):
        apply_rule(module, AffineMap.identity(module.num_features))  # raises without statistics
        return Kind.NORM, numel(step.shape) or module.num_features
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
        apply_rule(module, AffineMap.identity(1))  # raises where windows differ
    is_nothing = isinstance(
        module, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d
    )
    return (Kind.MOVE if is_nothing else Kind.OTHER), _macs_of_layers_in(step, module)


def _macs_of_layers_in(step: Step, module: nn.Module) -> int:
    """Count what the layers inside a node of branches cost, each at the positions of its output."""
    layers = [m.weight.numel() for m in module.modules() if isinstance(m, Conv | nn.Linear)]
    positions = math.prod(n for axis, n in enumerate(step.shape or ()) if axis != 1)
    return positions * sum(layers)


def _channel_axis(module: nn.Module, operand: Step) -> int | None:
    """Return the axis on which a module reads its channels; None for any."""
    if isinstance(module, nn.Linear):
        return -1 if operand.shape is None else len(operand.shape) - 1
    if isinstance(module, nn.Identity | nn.Dropout):
        return None
    return 1


def unary(operand: Any, kind: Kind, own: AffineMap, axis: int, macs: int) -> Operation:
    """Return the operation that composes a map of its own, on channels at one axis."""
    if not isinstance(operand, Step):
        raise NotFoldable("Its input is not an activation.")

    def apply(values: Mapping[Step, Located]) -> Located:
        return _on_batch(operand, values[operand].then(own, axis))

    return Operation((operand,), apply, kind, macs)


def _on_batch(operand: Step, result: Located) -> Located:
    """Return a map whose spatial axes are all axes of what was read but for batch and channels.

    Raises:
        NotFoldable: if they are not: without a batch the channels come first.
    """
    shape, axes = operand.shape, result.map.axes
    if shape is not None and axes and len(shape) != len(axes) + 2:
        raise NotFoldable("Its input has no batch.")
    return result


@operation(functional.batch_norm)
def _batch_norm(step: Step) -> Operation:
    given = bind(
        step,
        *("input", "running_mean", "running_var"),
        weight=None,
        bias=None,
        training=False,
        momentum=0.1,
        eps=1e-5,
    )
    mean, var = given["running_mean"], given["running_var"]
    if given["training"] is not False or mean is None or var is None:
        raise NotFoldable("A BatchNorm that uses the statistics of each batch.")
    if any(steps_in((mean, var, given["weight"], given["bias"], given["eps"]))):
        raise NotFoldable("Its parameters depend on an activation.")

    def vector(value: Tensor | None, neutral: float) -> Tensor:
        return torch.full_like(mean, neutral).to(like()) if value is None else value.to(like())

    factor = vector(given["weight"], 1.0) / (var.to(like()) + given["eps"]).sqrt()
    shift = vector(given["bias"], 0.0) - factor * mean.to(like())
    return unary(given["input"], Kind.NORM, channelwise(factor, shift), 1, numel(step.shape))


def channelwise(factor: Tensor, shift: Tensor) -> AffineMap:
    """Return the map that scales and shifts each channel, by ``(C,)`` each."""
    value = scale(factor)
    return AffineMap(value.in_channels, value.index, value.weight, Lazy(lambda: shift))


def channel_arithmetic(operation: Operation, operand: Step) -> tuple[Tensor, Tensor] | None:
    """Return factor and shift ``(C,)`` of an operation that does no more to each channel."""
    is_of_several = operation.operands != (operand,)
    if is_of_several or operand.shape is None or len(operand.shape) < 2:
        return None
    channels = operand.shape[1]
    try:
        found = operation.apply({operand: Located(AffineMap.identity(channels), 1)})
    except NotFoldable:
        return None
    own, order = found.map, torch.arange(channels).unsqueeze(1)
    if (
        found.axis != 1
        or not torch.equal(own.index, order)
        or any(axis != Axis() for axis in own.axes)
    ):
        return None
    ones = torch.ones(channels, dtype=torch.float64)
    factor = ones if own.weight is None else own.weight().flatten()
    return factor, torch.zeros_like(ones) if own.bias is None else own.bias()


def scale_and_shift(operation: Operation, operand: Step) -> tuple[Tensor, Tensor]:
    """Return what :func:`channel_arithmetic` does.

    Raises:
        NotFoldable: if the operation does more.
    """
    arithmetic = channel_arithmetic(operation, operand)
    if arithmetic is None:
        raise NotFoldable("It does more than scale and shift each channel.")
    return arithmetic


@operation(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)
def _dropout(step: Step) -> Operation:
    given = bind(step, "input", p=0.5, training=True, inplace=False)
    if given["training"] is not False and given["p"] != 0:
        raise NotFoldable("A dropout in training mode is random.")
    return identity(given["input"])


def identity(operand: Any) -> Operation:
    """Return the operation that gives its operand back."""
    if not isinstance(operand, Step):
        raise NotFoldable("Its input is not an activation.")
    return Operation((operand,), lambda values: values[operand], Kind.MOVE)


@operation(functional.pad)
def _pad(step: Step) -> Operation:
    given = bind(step, "input", "pad", mode="constant", value=None)
    operand, sides = given["input"], list(given["pad"])
    if not isinstance(operand, Step) or operand.shape is None:
        raise NotFoldable("Padding of an unknown shape.")
    mode = {"constant": "zeros"}.get(given["mode"], given["mode"])
    if (mode == "zeros" and given["value"] not in (None, 0)) or any(steps_in(sides)):
        raise NotFoldable("Padding that is not with zeros, or depends on the size of the input.")
    ndim = len(operand.shape) - 2
    pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    if len(pairs) > ndim:
        raise NotFoldable("Padding of the channels.")
    pairs = [(0, 0)] * (ndim - len(pairs)) + pairs
    own = padding(operand.shape[1], [Axis(1, 1, low, high) for low, high in pairs], mode)
    return unary(operand, Kind.OTHER, own, 1, 0)


@operation(functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d, torch.avg_pool1d)
def _average_pooling(step: Step) -> Operation:
    given = dict(
        bind(
            step,
            *("input", "kernel_size"),
            stride=None,
            padding=0,
            ceil_mode=False,
            count_include_pad=True,
            divisor_override=None,
        )
    )
    operand = given.pop("input")
    if any(steps_in(given)) or not isinstance(operand, Step) or operand.shape is None:
        raise NotFoldable("Average pooling whose windows depend on the size of the input.")
    ndim = len(operand.shape) - 2
    classes: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
    if ndim not in classes:
        raise NotFoldable("Average pooling of an input without a batch.")
    if ndim == 1:
        given.pop("divisor_override")
    own = apply_rule(classes[ndim](**given), AffineMap.identity(operand.shape[1]), like())
    return unary(operand, Kind.OTHER, own, 1, 0)
