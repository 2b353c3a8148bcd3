"""The layer that computes what a candidate computes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap, Lazy
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.algebra.serial import in_blocks
from repblocks.algebra.special import padding_layer
from repblocks.branches import CHANNELS_LAST, is_channels_last
from repblocks.folding.flow import Step
from repblocks.folding.region import Candidate

#: Values of a weight that are computed at a time.
_CHUNK = 1 << 18


def layer(candidate: Candidate) -> Conv | nn.Linear | nn.Sequential:
    """Return the convolution or linear layer, in evaluation mode, behind its padding if need be.

    It is computed in float64, and has dtype, device, memory format and gradients of the weights
    that it replaces.
    """
    weights = [w for step in _in_order(candidate) for w in weights_of(step)]
    reference = next((w for w in weights if w.ndim > 1), weights[0])
    new = (
        _convolution(candidate, reference)
        if candidate.value.map.axes
        else _linear(candidate, reference)
    )
    memory_format = CHANNELS_LAST.get(len(candidate.value.map.axes) + 2)
    if memory_format is not None and any(map(is_channels_last, weights)):
        new.to(memory_format=memory_format)
    trains = [w.requires_grad for w in weights if isinstance(w, nn.Parameter)]
    return new.requires_grad_(any(trains) or not trains)


def weights_of(step: Step) -> list[Tensor]:
    """Return the parameters and constant tensors that a step computes with."""
    if step.module is not None:
        return list(step.module.parameters())  # a weight may be made of others
    return [a for a in (*step.args, *step.kwargs.values()) if isinstance(a, Tensor)]


def _in_order(candidate: Candidate) -> list[Step]:
    return sorted(candidate.interior, key=lambda step: step.number)


def _convolution(candidate: Candidate, reference: Tensor) -> Conv | nn.Sequential:
    value, padding = candidate.value.map, candidate.padding_before
    narrow = _evaluated(value, reference)
    kernel, is_kept = ConvKernel.from_affine(narrow, reference), narrow is value
    if padding is None:
        return kernel.to_conv(copy=is_kept, same=candidate.is_same)
    conv = replace(kernel, padding=0, padding_mode="zeros").to_conv(copy=is_kept)
    return nn.Sequential(padding_layer(padding, value.padding_mode), conv).eval()


def _evaluated(value: AffineMap, reference: Tensor) -> AffineMap:
    """Return the map with its weight in another dtype, computed in float64 a few rows at a time.

    Rows that fit the caches, and memory that is used again, make this several times faster.
    """
    if value.weight is None:
        return value
    exact = value.weight
    result = torch.empty(
        *value.index.shape, *value.sizes, dtype=reference.dtype, device=reference.device
    )
    step = max(1, _CHUNK // max(1, result[0].numel()))
    for start in range(0, value.out_channels, step):
        stop = min(start + step, value.out_channels)
        result[start:stop] = exact.rows(start, stop)
    bias = None if value.bias is None else value.bias().to(reference, copy=True)
    return replace(
        value, weight=Lazy(lambda: result), bias=None if bias is None else Lazy(lambda: bias)
    )


def _linear(candidate: Candidate, reference: Tensor) -> nn.Linear:
    value = _evaluated(candidate.value.map, reference)
    weight = in_blocks(value, 1, reference)
    bias = None if value.bias is None else value.bias()
    new = nn.Linear(value.in_channels, value.out_channels, bias is not None, device="meta")
    new.weight = nn.Parameter(weight)
    if bias is not None:
        new.bias = nn.Parameter(bias)
    return new.eval()
