"""The operations that the folding of a whole model knows: one table, by function or by method.

What a module does stands in the table of the algebra, which the blocks use too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from repblocks.algebra.affine import AffineMap, Lazy
from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.algebra.normalization import is_batch_norm
from repblocks.algebra.parallel import add, concat
from repblocks.algebra.rules import apply as apply_rule
from repblocks.algebra.rules import has_rule
from repblocks.algebra.serial import compose
from repblocks.algebra.special import scale, zero_padding
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
    if step.is_opaque:
        raise NotFoldable(step.problem)
    module = step.module
    if module is not None:
        return _module(step, module)
    rule = OPERATIONS.get(step.target)
    if rule is None:
        raise NotFoldable(f"There is no rule for {getattr(step.target, '__name__', step.target)}.")
    return rule(step)


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
        return value.having(apply_rule(module, value.map, like()))

    kind, macs = Kind.OTHER, 0
    if isinstance(module, Conv | nn.Linear):
        size = numel(step.shape) or module.weight.shape[0]
        kind, macs = Kind.WEIGHT, size * module.weight[0].numel()
    elif is_batch_norm(module):
        apply_rule(module, AffineMap.identity(module.num_features))  # raises without statistics
        kind, macs = Kind.NORM, numel(step.shape) or module.num_features
    elif isinstance(module, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        kind = Kind.MOVE
    return Operation((operand,), apply, kind, macs)


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
        return values[operand].then(own, axis)

    return Operation((operand,), apply, kind, macs)


@operation(functional.conv1d, functional.conv2d, functional.conv3d)
def _convolution(step: Step) -> Operation:
    given = bind(step, "input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
    weight, bias = given["weight"], given["bias"]
    if any(steps_in((weight, bias))):
        raise NotFoldable("Its kernel depends on an activation.")
    ndim = weight.ndim - 2
    padding = given["padding"]
    if isinstance(padding, str):
        raise NotFoldable(f"Padding {padding!r} of a function is left alone.")
    sizes = {name: _each(given[name], ndim) for name in ("stride", "dilation")}
    kernel = ConvKernel(
        weight.to(like()),
        None if bias is None else bias.to(like()),
        sizes["stride"],
        _each(padding, ndim),
        sizes["dilation"],
        given["groups"],
    )
    macs = numel(step.shape) * weight[0].numel()
    return unary(given["input"], Kind.WEIGHT, kernel.to_affine(), 1, macs)


def _each(value: Any, ndim: int) -> tuple[int, ...]:
    found = (value,) * ndim if isinstance(value, int) else tuple(value)
    if not all(isinstance(number, int) for number in found):
        raise NotFoldable("Its geometry depends on the size of the input.")
    return found if len(found) == ndim else found * ndim


@operation(functional.linear)
def _linear(step: Step) -> Operation:
    given = bind(step, "input", "weight", bias=None)
    weight, bias, operand = given["weight"], given["bias"], given["input"]
    if any(steps_in((weight, bias))) or not isinstance(operand, Step) or operand.shape is None:
        raise NotFoldable("Its weight depends on an activation, or its shape is not known.")
    index = torch.arange(weight.shape[1]).expand(weight.shape[0], -1)
    own = AffineMap(
        weight.shape[1],
        index,
        Lazy(lambda: weight.to(like())),
        None if bias is None else Lazy(lambda: bias.to(like())),
    )
    macs = numel(step.shape) * weight.shape[1]
    return unary(operand, Kind.WEIGHT, own, len(operand.shape) - 1, macs)


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


@operation(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(step: Step) -> Operation:
    given = bind(step, "input", "other", alpha=1)
    return _sum_of(step, given["input"], given["other"], given["alpha"])


@operation(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _subtract(step: Step) -> Operation:
    given = bind(step, "input", "other", alpha=1)
    return _sum_of(step, given["input"], given["other"], -given["alpha"])


def _sum_of(step: Step, first: Any, second: Any, alpha: Any) -> Operation:
    if isinstance(first, Step) and isinstance(second, Step):
        return sum_of_activations(step, ((first, 1), (second, alpha)))
    if isinstance(first, Step):
        return _arithmetic(step, first, 1, second, alpha)
    return _arithmetic(step, second, alpha, first, 1)


def sum_of_activations(
    step: Step, terms: Sequence[tuple[Step, Any]], through: tuple[Step, ...] = ()
) -> Operation:
    """Return the sum of activations, each times a number."""
    steps = [term for term, _ in terms]
    if step.shape is None or any(term.shape != step.shape for term in steps):
        raise NotFoldable("The terms have different shapes, or their shapes are not known.")

    def apply(values: Mapping[Step, Located]) -> Located:
        first = alike([values[term] for term in steps])
        return first.having(add(*(scaled(values[t].map, factor) for t, factor in terms)))

    operands = tuple(dict.fromkeys(steps))
    join = "sum" if len(operands) == len(steps) else ""
    return Operation(operands, apply, Kind.OTHER, through=through, join=join)


def alike(values: Sequence[Located]) -> Located:
    """Return the first of several values, which all have their channels on one axis.

    Raises:
        NotFoldable: if they have not, or views have rearranged them.
    """
    if any(value.axis != values[0].axis or value.is_viewed for value in values):
        raise NotFoldable("Branches whose channels or positions are arranged differently.")
    return values[0]


def scaled(value: AffineMap, factor: float) -> AffineMap:
    """Return the map times a number."""
    if factor == 1:
        return value
    return compose(scale(torch.full((value.out_channels,), factor, dtype=torch.float64)), value)


@operation(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def _multiply(step: Step) -> Operation:
    given = bind(step, "input", "other")
    first, second = given["input"], given["other"]
    if isinstance(first, Step) and isinstance(second, Step):
        raise NotFoldable("A product of two activations.")
    operand, factor = (first, second) if isinstance(first, Step) else (second, first)
    return _arithmetic(step, operand, factor, 0, 1)


@operation(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def _divide(step: Step) -> Operation:
    given = bind(step, "input", "other", rounding_mode=None)
    first, second = given["input"], given["other"]
    if given["rounding_mode"] is not None or isinstance(second, Step):
        raise NotFoldable("A division that rounds, or by an activation.")
    return _arithmetic(step, first, 1 / _constant(second), 0, 1)


@operation(operator.neg, torch.neg, "neg")
def _negate(step: Step) -> Operation:
    return _arithmetic(step, step.args[0], -1, 0, 1)


def _arithmetic(step: Step, operand: Any, factor: Any, shift: Any, alpha: Any) -> Operation:
    """Return ``factor * operand + alpha * shift`` with constants that are one number a channel."""
    if not isinstance(operand, Step) or operand.shape is None or operand.shape != step.shape:
        raise NotFoldable("Arithmetic that broadcasts, or whose shape is not known.")
    if any(steps_in((factor, shift, alpha))):
        raise NotFoldable("Arithmetic with a number that depends on an activation.")
    factors, shifts = _constant(factor), _constant(shift) * alpha
    shape = operand.shape

    def apply(values: Mapping[Step, Located]) -> Located:
        value = values[operand]
        scales, moves = (_per_channel(t, shape, value.axis) for t in (factors, shifts))
        own = scale(scales) if not moves.any() else channelwise(scales, moves)
        return value.then(own)

    is_scale = bool((factors != 1).any())
    macs = numel(shape) if is_scale else 0
    is_nothing = not is_scale and not shifts.any()
    return Operation((operand,), apply, Kind.MOVE if is_nothing else Kind.SCALE, macs)


def _constant(value: Any) -> Tensor:
    """Return a number or tensor as it is, in float64."""
    return (
        value.to(like()) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    )


def _per_channel(constant: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    if constant.numel() == 1:
        return constant.reshape(1).expand(shape[axis])
    padded = constant.reshape((1,) * (len(shape) - constant.ndim) + tuple(constant.shape))
    if any(size != 1 for i, size in enumerate(padded.shape) if i != axis):
        raise NotFoldable("Arithmetic with a constant that is not one number a channel.")
    return padded.reshape(-1)


@operation(torch.cat, torch.concat)
def _concatenate(step: Step) -> Operation:
    given = bind(step, "tensors", dim=0)
    tensors, axis = given["tensors"], given["dim"]
    if step.shape is None or not all(isinstance(tensor, Step) for tensor in tensors):
        raise NotFoldable("A concatenation with constants, or of unknown shape.")
    axis %= len(step.shape)

    def apply(values: Mapping[Step, Located]) -> Located:
        first = alike([values[tensor] for tensor in tensors])
        if first.axis != axis:
            raise NotFoldable("A concatenation along another axis than the channels.")
        return first.having(concat(*(values[tensor].map for tensor in tensors)))

    operands = tuple(dict.fromkeys(tensors))
    join = "concat" if len(operands) == len(tensors) and axis == 1 else ""
    return Operation(operands, apply, Kind.OTHER, join=join)


@operation(functional.pad)
def _pad(step: Step) -> Operation:
    given = bind(step, "input", "pad", mode="constant", value=None)
    operand, sides = given["input"], list(given["pad"])
    if not isinstance(operand, Step) or operand.shape is None:
        raise NotFoldable("Padding of an unknown shape.")
    if given["mode"] != "constant" or given["value"] not in (None, 0) or any(steps_in(sides)):
        raise NotFoldable("Padding that is not with zeros, or depends on the size of the input.")
    ndim = len(operand.shape) - 2
    pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    if len(pairs) > ndim:
        raise NotFoldable("Padding of the channels.")
    pairs = [(0, 0)] * (ndim - len(pairs)) + pairs
    own = zero_padding(operand.shape[1], [Axis(1, 1, low, high) for low, high in pairs])
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
