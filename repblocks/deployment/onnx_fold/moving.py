"""ONNX's arithmetic, joins and views as functions of torch, and a few nonlinearities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from repblocks.deployment.onnx_fold.modules import (
    Binary,
    Concat,
    Reshape,
    SameType,
    ShapeOf,
    Slice,
    Unary,
    Unsqueeze,
    WithConstant,
)
from repblocks.deployment.onnx_fold.operators import TRANSLATORS, Node, translates
from repblocks.errors import NotFoldable

_ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Sum": torch.add,
}
#: Not linear, but written in torch they run in float64 too.
_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Neg": torch.neg,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Abs": torch.abs,
}


@translates(*_ARITHMETIC)
def _arithmetic(node: Node) -> nn.Module:
    function = _ARITHMETIC[node.proto.op_type]
    given = [one for one in node.inputs if one is not None]
    if not all(one.is_floating_point() for one in given):
        raise NotFoldable("It computes in integers.")
    if len(given) == len(node.inputs):
        return nn.Identity() if len(given) == 1 else Binary(function)
    if len(node.inputs) != 2:
        raise NotFoldable("It has constants among several terms.")
    place = 0 if node.inputs[0] is None else 1
    return WithConstant(function, node.tensor(place), is_first=place == 0)


def _elementwise(node: Node) -> nn.Module:
    if not node.activation.is_floating_point():
        raise NotFoldable("It computes in integers.")
    return Unary(_ELEMENTWISE[node.proto.op_type])


TRANSLATORS.update(dict.fromkeys(_ELEMENTWISE, _elementwise))


@translates("Concat")
def _concat(node: Node) -> nn.Module:
    if any(one is None for one in node.inputs):
        raise NotFoldable("It joins a constant.")
    return Concat(node.options["axis"])


@translates("Split")
def _split(node: Node) -> nn.Module:
    axis = node.options.get("axis", 0)
    sizes = node.integers("split", 1, since=13)
    size, parts = node.activation.shape[axis], len(node.proto.output)
    if sizes is None:
        each = -(-size // parts)
        sizes = [min(each, size - each * part) for part in range(parts)]
    if axis % node.activation.ndim != 1 or min(sizes) <= 0 or not all(node.proto.output):
        raise NotFoldable("It splits along another axis than the channels.")
    return Unary(torch.split, split_size_or_sections=sizes, dim=axis)


@translates("Slice")
def _slice(node: Node) -> nn.Module:
    starts, ends = (node.integers(n, i, since=10) for n, i in (("starts", 1), ("ends", 2)))
    if starts is None or ends is None:
        raise NotFoldable("Where it begins is not known.")
    axes = node.integers("axes", 3, since=10) or list(range(len(starts)))
    steps = [1] * len(starts)
    if node.opset >= 10:
        steps = node.integers("steps", 4, since=10) or steps
    items = [slice(None)] * node.activation.ndim
    last = np.iinfo(np.int32).max
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise NotFoldable("It reverses an axis.")
        items[axis] = slice(
            start or None, None if end >= last else end, None if step == 1 else step
        )
    return Slice(items)


@translates("Reshape")
def _reshape(node: Node) -> nn.Module:
    """Return a reshape whose sizes are numbers wherever they are the same for all inputs."""
    if node.shape is None:
        raise NotFoldable("Its shape is computed.")
    sizes = [size if isinstance(size, int) else -1 for size in node.shape]
    copied = {
        place: node.axes[size]
        for place, size in enumerate(node.shape)
        if isinstance(size, str) and size in node.axes
    }
    if sizes.count(-1) - len(copied) > 1:
        raise NotFoldable("Several sizes of its shape are computed.")
    return Reshape(sizes, copied)


@translates("Cast", "CastLike")
def _cast(node: Node) -> nn.Module:
    own, other = node.activation.dtype, node.inputs[-1]
    if node.proto.op_type == "Cast":
        wanted = onnx.helper.tensor_dtype_to_np_dtype(node.options["to"])
        other = torch.from_numpy(np.zeros(1, wanted)) if wanted.kind in "fiub" else None
    if other is None or other.dtype != own:
        raise NotFoldable("It changes the type.")
    return SameType()


@translates("Shape")
def _shape(node: Node) -> nn.Module:
    _ = node.activation
    return ShapeOf(node.options.get("start", 0), node.options.get("end"))


@translates("Transpose")
def _transpose(node: Node) -> nn.Module:
    order = node.options.get("perm") or list(range(node.activation.ndim))[::-1]
    return Unary(torch.permute, dims=list(order))


@translates("Flatten")
def _flatten(node: Node) -> nn.Module:
    axis = node.options.get("axis", 1)
    if axis % node.activation.ndim != 1:
        raise NotFoldable("It flattens the batch too.")
    return Unary(torch.flatten, start_dim=1)


@translates("Squeeze")
def _squeeze(node: Node) -> nn.Module:
    axes = _axes(node, node.activation.ndim)
    sizes = [size for axis, size in enumerate(node.activation.shape) if axis in axes]
    if any(size != 1 for size in sizes):
        raise NotFoldable("It removes an axis that has several places.")
    return Unary(torch.squeeze, dim=axes[0] if len(axes) == 1 else tuple(axes))


@translates("Unsqueeze")
def _unsqueeze(node: Node) -> nn.Module:
    number = len(node.integers("axes", 1, since=13) or [])
    return Unsqueeze(_axes(node, node.activation.ndim + number))


def _axes(node: Node, ndim: int) -> Sequence[Any]:
    axes = node.integers("axes", 1, since=13)
    if not axes:
        raise NotFoldable("Its axes depend on the input.")
    return sorted(axis % ndim for axis in axes)
