"""Convolutions, linear layers and products with a matrix, called as functions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repblocks.algebra.affine import AffineMap, Lazy
from repblocks.algebra.kernel import ConvKernel
from repblocks.errors import NotFoldable
from repblocks.folding.flow import Step, steps_in
from repblocks.folding.operation import Kind, Operation, bind, numel
from repblocks.folding.operations import like, operation, unary


@operation(functional.conv1d, functional.conv2d, functional.conv3d)
def _convolution(step: Step) -> Operation:
    given = bind(step, "input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
    weight, bias = given["weight"], given["bias"]
    if any(steps_in((weight, bias))):
        raise NotFoldable("Its kernel depends on an activation.")
    ndim = weight.ndim - 2
    sizes = {name: _each(given[name], ndim) for name in ("stride", "dilation")}
    kernel = ConvKernel(
        weight.to(like()),
        None if bias is None else bias.to(like()),
        sizes["stride"],
        _padding(given["padding"], weight.shape[2:], sizes["dilation"]),
        sizes["dilation"],
        given["groups"],
    )
    macs = numel(step.shape) * weight[0].numel()
    return unary(given["input"], Kind.WEIGHT, kernel.to_affine(), 1, macs)


def _padding(
    sides: Any, kernel_size: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return the padding below and above on each axis; torch pads an odd sum more above."""
    if sides == "same":
        totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    numbers = _each(0 if sides == "valid" else sides, len(kernel_size))
    return tuple((number, number) for number in numbers)


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
    return _dense(step, operand, weight, bias)


@operation(operator.matmul, torch.matmul, torch.mm, "matmul", "mm")
def _matrix_product(step: Step) -> Operation:
    given = bind(step, "input", "other", mat2=None)
    operand, matrix = given["input"], given.get("other", given["mat2"])
    if not isinstance(operand, Step) or not isinstance(matrix, Tensor) or matrix.ndim != 2:
        raise NotFoldable("A product that is not of an activation and a constant matrix.")
    if operand.shape is None or len(operand.shape) < 2:
        raise NotFoldable("A product of an unknown shape.")
    return _dense(step, operand, matrix.T, None)


def _dense(step: Step, operand: Step, weight: Tensor, bias: Tensor | None) -> Operation:
    """Return what a linear layer does to the last axis; the weight is ``(C_out, C_in)``."""
    index = torch.arange(weight.shape[1]).expand(weight.shape[0], -1)
    own = AffineMap(
        weight.shape[1],
        index,
        Lazy(lambda: weight.to(like())),
        None if bias is None else Lazy(lambda: bias.to(like())),
    )
    macs = numel(step.shape) * weight.shape[1]
    return unary(operand, Kind.WEIGHT, own, len(operand.shape or ()) - 1, macs)
