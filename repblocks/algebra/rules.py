"""What each operation does to an affine map: one table, from a ``forward`` to its rule.

The key is the function that a class runs as its ``forward``, not the class: a subclass that
inherits it computes the same and shares the rule, one with a ``forward`` of its own does not. An
operation that is not in the table has no equivalent kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap, Lazy, tensor_for
from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.algebra.normalization import batch_norm_map, forward_of, is_batch_norm
from repblocks.algebra.serial import compose
from repblocks.algebra.special import CONV_CLASSES, average_pooling, padding
from repblocks.errors import NotFoldable

Rule = Callable[[Any, AffineMap, Tensor | None], AffineMap]
AvgPool = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
RULES: dict[Callable[..., Any], Rule] = {}
_CONV_FORWARDS = {cls._conv_forward for cls in CONV_CLASSES.values()}


def rule(*classes: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register what the modules of these classes do to an affine map."""

    def register(function: Rule) -> Rule:
        for cls in classes:
            RULES[cls.forward] = function
        return function

    return register


def apply(module: nn.Module, value: AffineMap, like: Tensor | None = None) -> AffineMap:
    """Return the map of ``module`` after ``value``, in evaluation mode.

    Args:
        module: An operation of the table, or a container of them.
        value: What has been computed before; ``AffineMap.identity(C)`` for nothing.
        like: A tensor of the dtype and device to compute in; those of the weights by default.

    Raises:
        NotFoldable: if the operation is not in the table, is in training mode where that matters,
            or the result would not be exact.
    """
    found = RULES.get(forward_of(module))
    if found is None:
        raise NotFoldable(f"There is no rule for {type(module).__name__}.")
    check_call(module)
    return found(module, value, like)


def check_call(module: nn.Module) -> None:
    """Check that a call of a module runs the ``forward`` of its class and nothing else.

    Raises:
        NotFoldable: if it has hooks, a ``forward`` of its own, or a class that calls otherwise.
    """
    kind = type(module).__name__
    if module._forward_hooks or module._forward_pre_hooks:
        raise NotFoldable(
            f"{kind} has forward hooks, which may change what it computes and would be lost; "
            "remove them."
        )
    for name in ("forward", "_conv_forward"):
        if name in vars(module):
            raise NotFoldable(
                f"{kind} has another {name} than its class, set on the instance, which would be "
                "lost; remove it."
            )
    if type(module).__call__ is not nn.Module.__call__:
        raise NotFoldable(f"{kind} overrides __call__, which may change what it computes.")


def has_rule(module: nn.Module) -> bool:
    """Tell whether the table says what a call of a module does, its hooks aside."""
    is_its_class = "forward" not in vars(module) and "_conv_forward" not in vars(module)
    if forward_of(module) not in RULES or not is_its_class:
        return False
    return not isinstance(module, Conv) or type(module)._conv_forward in _CONV_FORWARDS


@rule(nn.Sequential)
def _sequential(module: nn.Sequential, value: AffineMap, like: Tensor | None) -> AffineMap:
    for child in module:
        value = apply(child, value, like)
    return value


@rule(*CONV_CLASSES.values())
def _convolution(module: Conv, value: AffineMap, like: Tensor | None) -> AffineMap:
    if not has_rule(module):
        raise NotFoldable(f"{type(module).__name__} convolves in a way of its own.")
    return compose(ConvKernel.from_conv(module).to_affine(like), value)


@rule(nn.Linear)
def _linear(module: nn.Linear, value: AffineMap, like: Tensor | None) -> AffineMap:
    if value.axes:
        raise NotFoldable("A Linear acts on the last axis, which here is not the channels.")
    weight, bias = module.weight, module.bias
    index = torch.arange(module.in_features).expand(module.out_features, -1)
    own = AffineMap(
        module.in_features,
        index,
        Lazy(lambda: tensor_for(weight, like)),
        None if bias is None else Lazy(lambda: tensor_for(bias, like)),
    )
    return compose(own, value)


@rule(nn.BatchNorm2d, nn.SyncBatchNorm)
def _batch_norm(module: nn.Module, value: AffineMap, like: Tensor | None) -> AffineMap:
    if not is_batch_norm(module):
        raise NotFoldable(f"{type(module).__name__} does more than normalise.")
    return compose(batch_norm_map(module, like), value)


@rule(nn.Identity)
def _identity(module: nn.Module, value: AffineMap, like: Tensor | None) -> AffineMap:
    del module, like
    return value


@rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def _dropout(module: nn.Dropout, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    if module.training and module.p > 0:
        raise NotFoldable("A dropout in training mode is random; call .eval() first.")
    return value


@rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def _average_pooling(module: AvgPool, value: AffineMap, like: Tensor | None) -> AffineMap:
    axes = _pooling_axes(module)
    if module.ceil_mode:
        raise NotFoldable("Average pooling with ceil_mode has windows of different sizes.")
    if not module.count_include_pad and any(axis.pads for axis in axes):
        raise NotFoldable(
            "Average pooling with count_include_pad=False divides by another number at the border."
        )
    if not isinstance(module, nn.AvgPool1d) and module.divisor_override is not None:
        raise NotFoldable("Average pooling with divisor_override is not an average.")
    return compose(average_pooling(value.out_channels, axes, like), value)


def _pooling_axes(module: AvgPool) -> list[Axis]:
    ndim = {nn.AvgPool1d.forward: 1, nn.AvgPool2d.forward: 2, nn.AvgPool3d.forward: 3}[
        type(module).forward
    ]

    def each(given: int | Sequence[int]) -> Sequence[int]:
        return (given,) * ndim if isinstance(given, int) else given

    described = zip(
        each(module.kernel_size), each(module.stride), each(module.padding), strict=True
    )
    return [Axis(k, s, p, p) for k, s, p in described]


@rule(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
def _zero_padding(module: nn.ZeroPad2d, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    return _padded(module, value, "zeros")


@rule(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
def _reflection(module: nn.ReflectionPad2d, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    return _padded(module, value, "reflect")


@rule(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
def _replication(module: nn.ReplicationPad2d, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    return _padded(module, value, "replicate")


@rule(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
def _circular(module: nn.CircularPad2d, value: AffineMap, like: Tensor | None) -> AffineMap:
    del like
    return _padded(module, value, "circular")


def _padded(module: Any, value: AffineMap, mode: str) -> AffineMap:
    sides = list(module.padding)
    # The last axis comes first in torch's padding.
    pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    return compose(padding(value.out_channels, [Axis(1, 1, *p) for p in pairs], mode), value)
