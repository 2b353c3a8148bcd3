"""Arithmetic and joins of activations: sums, scales, concatenations."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.parallel import add, concat
from repblocks.algebra.serial import compose
from repblocks.algebra.special import scale
from repblocks.errors import NotFoldable
from repblocks.folding.flow import Step, steps_in
from repblocks.folding.operation import Kind, Located, Operation, bind, numel
from repblocks.folding.operations import channelwise, like, operation


@operation(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(step: Step) -> Operation:
    given = bind(step, "input", "other", alpha=1)
    return _sum_of(step, given["input"], given["other"], given["alpha"])


@operation(operator.sub, operator.isub, torch.sub, torch.subtract)
@operation("sub", "sub_", "subtract", "subtract_")
def _subtract(step: Step) -> Operation:
    given = bind(step, "input", "other", alpha=1)
    return _sum_of(step, given["input"], given["other"], -given["alpha"])


@operation(torch.rsub, "rsub")
def _subtract_from(step: Step) -> Operation:
    given = bind(step, "input", "other", alpha=1)
    return _sum_of(step, given["other"], given["input"], -given["alpha"])


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
    # What is pushed back gives its shift to the first term.
    join = "sum" if len(operands) == len(steps) and terms[0][1] == 1 else ""
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


@operation(operator.mul, operator.imul, torch.mul, torch.multiply)
@operation("mul", "mul_", "multiply", "multiply_")
def _multiply(step: Step) -> Operation:
    given = bind(step, "input", "other")
    first, second = given["input"], given["other"]
    if isinstance(first, Step) and isinstance(second, Step):
        raise NotFoldable("A product of two activations.")
    operand, factor = (first, second) if isinstance(first, Step) else (second, first)
    return _arithmetic(step, operand, factor, 0, 1)


@operation(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide)
@operation("div", "div_", "divide", "divide_", "true_divide", "true_divide_")
def _divide(step: Step) -> Operation:
    given = bind(step, "input", "other", rounding_mode=None)
    first, second = given["input"], given["other"]
    if given["rounding_mode"] is not None or isinstance(second, Step):
        raise NotFoldable("A division that rounds, or by an activation.")
    return _arithmetic(step, first, 1 / _constant(second), 0, 1)


@operation(operator.neg, torch.neg, torch.negative, "neg", "neg_", "negative", "negative_")
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
        return value.then(channelwise(scales, moves) if is_shift else scale(scales))

    # Of tensors, which may be trained, no value is special: the plan is that of the program.
    is_scale, is_shift = (
        isinstance(factor, Tensor) or factor != 1,
        isinstance(shift, Tensor) or shift != 0,
    )
    is_sign = not isinstance(factor, Tensor) and abs(factor) == 1
    macs = numel(shape) if not is_sign else 0
    is_nothing = not is_scale and not is_shift
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


@operation(torch.sum, "sum")
def _sum_of_stack(step: Step) -> Operation:
    return sum_of_activations(step, [(term, 1) for term in _stacked(step)], _stack(step))


@operation(torch.mean, "mean")
def _mean_of_stack(step: Step) -> Operation:
    terms = _stacked(step)
    return sum_of_activations(step, [(term, 1 / len(terms)) for term in terms], _stack(step))


def _stack(step: Step) -> tuple[Step, ...]:
    return tuple(step.operands[:1])


def _stacked(step: Step) -> Sequence[Step]:
    """Return what is stacked along the axis that a step reduces."""
    given = bind(step, "input", dim=None, keepdim=False, dtype=None)
    stack, dim = given["input"], given["dim"]
    dims = tuple(dim) if isinstance(dim, Sequence) else (dim,)
    is_plain = not given["keepdim"] and given["dtype"] is None
    if not isinstance(stack, Step) or stack.target is not torch.stack or not is_plain:
        raise NotFoldable("A sum over an axis.")
    stacked = bind(stack, "tensors", dim=0)
    terms = stacked["tensors"]
    if stack.shape is None or len(dims) != 1 or not all(isinstance(t, Step) for t in terms):
        raise NotFoldable("A sum over other axes than that of a stack.")
    if dims[0] is None or dims[0] % len(stack.shape) != stacked["dim"] % len(stack.shape):
        raise NotFoldable("A sum over other axes than that of a stack.")
    found: Sequence[Step] = terms
    return found
