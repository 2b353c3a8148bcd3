"""ONNX's layers as torch's: convolutions, products, norms, pooling and padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from repblocks.algebra.special import padding_layer
from repblocks.deployment.onnx_fold.modules import Unary
from repblocks.deployment.onnx_fold.operators import Node, translates
from repblocks.errors import NotFoldable

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_GLOBAL = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_BY_SIZE = "Its padding depends on the size of the input."


@translates("Conv")
def _conv(node: Node) -> nn.Module:
    weight, ndim = node.tensor(1), node.spatial()
    groups = node.options.get("group", 1)
    stride, dilation = _each(node, "strides", ndim), _each(node, "dilations", ndim)
    pads = _pads(node, weight.shape[2:], stride, dilation)
    low, high = pads[:ndim], pads[ndim:]
    conv = _CONVS[ndim - 1](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type] # one number an axis
        stride,  # type: ignore[arg-type]
        low if low == high else 0,  # type: ignore[arg-type]
        dilation,  # type: ignore[arg-type]
        groups,
        device="meta",
    )
    _fill(conv, weight, node)
    pairs = list(zip(low, high, strict=True))
    return conv if low == high else nn.Sequential(padding_layer(pairs), conv)


@translates("ConvTranspose")
def _conv_transpose(node: Node) -> nn.Module:
    weight, ndim = node.tensor(1), node.spatial()
    groups = node.options.get("group", 1)
    stride, dilation = _each(node, "strides", ndim), _each(node, "dilations", ndim)
    if "output_shape" in node.options:
        raise NotFoldable(_BY_SIZE)
    pads = _pads(node, [1] * ndim, stride, dilation)
    if pads[:ndim] != pads[ndim:]:
        raise NotFoldable("It is padded more on one side than on the other.")
    conv = _TRANSPOSED[
        ndim - 1
    ](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        stride,  # type: ignore[arg-type]
        pads[:ndim],  # type: ignore[arg-type]
        tuple(node.options.get("output_padding", [0] * ndim)),
        groups,
        dilation=dilation,  # type: ignore[arg-type]
        device="meta",
    )
    return _fill(conv, weight, node)


def _fill(layer: nn.Module, weight: Tensor, node: Node) -> nn.Module:
    bias = node.constant(2)
    layer.register_parameter("weight", nn.Parameter(weight))
    layer.register_parameter("bias", None if bias is None else nn.Parameter(node.tensor(2)))
    return layer


def _each(node: Node, name: str, ndim: int) -> tuple[int, ...]:
    return tuple(node.options.get(name, [1] * ndim))


def _pads(
    node: Node, sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Return the padding below on each axis, then above.

    Raises:
        NotFoldable: if it depends on the size of the input.
    """
    kind = node.options.get("auto_pad", b"NOTSET").decode()
    if kind == "NOTSET":
        return tuple(node.options.get("pads", [0] * (2 * len(sizes))))
    if kind == "VALID":
        return (0,) * (2 * len(sizes))
    if node.proto.op_type == "ConvTranspose":
        raise NotFoldable(_BY_SIZE)
    reads = (node.reads or [""] * (2 + len(sizes)))[2:]
    totals = list(map(_total, reads, sizes, stride, dilation))
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return tuple([*less, *more] if kind == "SAME_UPPER" else [*more, *less])


def _total(size: int | str, taps: int, stride: int, dilation: int) -> int:
    """Return the padding on both sides of an axis after which it is as long as its windows allow.

    Raises:
        NotFoldable: if it depends on the size of the input, which is free.
    """
    extent = dilation * (taps - 1) + 1
    if 1 in (stride, extent):  # whatever the size
        return extent - 1
    if isinstance(size, str):
        raise NotFoldable(_BY_SIZE)
    return max((-(-size // stride) - 1) * stride + extent - size, 0)


@translates("BatchNormalization")
def _batch_norm(node: Node) -> nn.Module:
    if node.options.get("training_mode", 0) or node.options.get("is_test", 1) == 0:
        raise NotFoldable("It uses the statistics of each batch.")
    if node.options.get("spatial", 1) != 1:
        raise NotFoldable("It normalises each position by itself.")
    scale, shift, mean, variance = (node.tensor(place) for place in range(1, 5))
    kind = _NORMS[max(node.spatial(at_least=0), 1) - 1]
    norm = kind(len(scale), eps=node.options.get("epsilon", 1e-5), dtype=scale.dtype)
    norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(shift)
    norm.running_mean, norm.running_var = mean, variance
    norm.num_batches_tracked.fill_(1)  # type: ignore[union-attr] # it tracks
    return norm


@translates("Gemm")
def _gemm(node: Node) -> nn.Module:
    if node.options.get("transA", 0) or node.activation.ndim != 2:
        raise NotFoldable("It is no linear layer.")
    weight = node.tensor(1) * node.options.get("alpha", 1.0)
    weight = weight if node.options.get("transB", 0) else weight.T
    shift = node.constant(2)
    bias = None if shift is None else node.tensor(2) * node.options.get("beta", 1.0)
    if bias is not None and tuple(bias.shape) not in _shifts(len(weight)):
        raise NotFoldable("What it adds is not one number a channel.")
    if bias is not None:
        bias = bias.reshape(-1).expand(len(weight)).clone()
    return _linear(weight, bias)


def _shifts(channels: int) -> set[tuple[int, ...]]:
    """Give the shapes that are broadcast along the batch, and to it alone."""
    return {(), (1,), (1, 1), (channels,), (1, channels)}


@translates("MatMul")
def _matmul(node: Node) -> nn.Module:
    weight = node.tensor(1)
    if weight.ndim != 2 or node.activation.ndim < 2:
        raise NotFoldable("It is no linear layer.")
    return _linear(weight.T, None)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    channels_out, channels_in = weight.shape
    layer = nn.Linear(channels_in, channels_out, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.contiguous())
    layer.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]
    return layer


@translates("AveragePool")
def _average_pool(node: Node) -> nn.Module:
    ndim = node.spatial()
    size, stride = _each(node, "kernel_shape", ndim), _each(node, "strides", ndim)
    if node.options.get("ceil_mode", 0) or set(_each(node, "dilations", ndim)) != {1}:
        raise NotFoldable("Its windows differ.")
    pads = _pads(node, size, stride, (1,) * ndim)
    if pads[:ndim] != pads[ndim:]:
        raise NotFoldable("It is padded more on one side than on the other.")
    if ndim == 3 and node.activation.dtype is torch.float16:
        raise NotFoldable("Torch has no average of volumes in float16 on a CPU.")
    counts = bool(node.options.get("count_include_pad", 0))
    return _POOLS[ndim - 1](size, stride, pads[:ndim], count_include_pad=counts)  # type: ignore[arg-type]


@translates("GlobalAveragePool")
def _global_average_pool(node: Node) -> nn.Module:
    return _GLOBAL[node.spatial() - 1](1)


@translates("ReduceMean")
def _reduce_mean(node: Node) -> nn.Module:
    axes = node.integers("axes", 1, since=18)
    if not axes:
        raise NotFoldable("It averages over all axes.")
    is_kept = bool(node.options.get("keepdims", 1))
    return Unary(torch.mean, dim=axes, keepdim=is_kept)


@translates("Pad")
def _pad(node: Node) -> nn.Module:
    pads, ndim = node.integers("pads", 1, since=11), node.spatial()
    value = node.options.get("value", 0.0) if node.opset < 11 else node.constant(2)
    is_zero = value is None or not np.any(value)
    if node.options.get("mode", b"constant") != b"constant" or not is_zero or not pads:
        raise NotFoldable("It does not pad with zeros.")
    if node.opset >= 18 and node.constant(3) is not None:
        raise NotFoldable("It pads some axes only.")
    low, high = pads[: ndim + 2], pads[ndim + 2 :]
    if any((*low[:2], *high[:2])) or min(pads) < 0:
        raise NotFoldable("It pads the channels, or cuts.")
    return padding_layer(list(zip(low[2:], high[2:], strict=True)))


@translates("Identity", "Dropout")
def _identity(node: Node) -> nn.Module:
    is_dropout = node.proto.op_type == "Dropout"
    if is_dropout and node.opset >= 12 and np.any(node.constant(2)):
        raise NotFoldable("A dropout in training mode is random.")
    _ = node.activation
    return nn.Identity()
