"""Cross-layer equalisation: the same function with channels that are alike, for one scale of all.

A channel between two layers of a pair (`pairs.py`) is divided by ``s`` where it is written and
multiplied by ``s`` where it is read: ``W1' = W1 / s``, ``b1' = b1 / s``, ``W2' = s W2``. Each ``s``
is a power of two, so that not one bit of the output changes.

Source:
    Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019,
    section 4.1, https://arxiv.org/abs/1906.04721. It balances the weights of both layers. With one
    scale for each channel of a weight it is the activations that need it: ``"activations"`` puts
    their largest values in the place of the first layer's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from repblocks.deployment.quantization.pairs import Pair, find_pairs
from repblocks.deployment.quantization.simulation import Layer, quantizable_layers, reading

_ROUNDS = 20
_LARGEST_EXPONENT = 8


def equalize_(
    model: nn.Module, batches: Sequence[Tensor], by: Literal["weights", "activations"]
) -> list[Pair]:
    """Scale the channels of a network in place; it stays the same function.

    Args:
        model: In evaluation mode.
        batches: Typical images ``(N, C, H, W)``.
        by: What is balanced.

    Returns:
        The pairs whose channels were scaled.
    """
    layers = quantizable_layers(model)
    pairs = find_pairs(model, batches[0][:2].expand(2, *batches[0].shape[1:]))
    if by == "activations":
        _equalize_activations(model, layers, pairs, batches)
    else:
        _equalize_weights(layers, pairs)
    return pairs


def _equalize_weights(layers: dict[str, Layer], pairs: Sequence[Pair]) -> None:
    """Balance each pair until nothing changes: a layer belongs to two of them."""
    for _ in range(_ROUNDS):
        changed = False
        for pair in pairs:
            first, second = layers[pair.first], layers[pair.second]
            written = first.weight.abs().flatten(1).amax(1)
            scale = _power_of_two((written / _read_by(second, len(written))).sqrt())
            _rescale(first, second, scale)
            changed |= bool((scale != 1).any())
        if not changed:
            return


def _equalize_activations(
    model: nn.Module, layers: dict[str, Layer], pairs: Sequence[Pair], batches: Sequence[Tensor]
) -> None:
    """Balance what a layer reads with the weights that it reads it with.

    A depthwise convolution has one scale for each channel that it reads: its weights do not matter.
    """
    largest = _largest_read({pair.second: layers[pair.second] for pair in pairs}, model, batches)
    for pair in pairs:
        first, second = layers[pair.first], layers[pair.second]
        read = largest[pair.second].view(first.weight.shape[0], -1).amax(1)
        if isinstance(second, nn.Linear) or second.groups < second.in_channels:
            read = (read / _read_by(second, len(read), relative=True)).sqrt()
        exponents = read.log2()
        usual = exponents[exponents.isfinite()].mean()
        _rescale(first, second, _power_of_two((exponents - usual).exp2()))


def _largest_read(
    layers: dict[str, Layer], model: nn.Module, batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Measure the largest magnitude of each channel that a layer reads."""
    found: dict[str, Tensor] = {}

    def measure(path: str, x: Tensor) -> None:
        axis = x.ndim - 1 if isinstance(layers[path], nn.Linear) else 1
        largest = x.abs().movedim(axis, 0).flatten(1).amax(1)
        found[path] = torch.maximum(found[path], largest) if path in found else largest

    with reading(layers, measure), torch.inference_mode():
        for batch in batches:
            model(batch)
    return found


def _read_by(layer: Layer, channels: int, *, relative: bool = False) -> Tensor:
    """Give the largest magnitude of the weights that read each channel.

    Args:
        layer: Reads the channels; a linear layer may read several values of each.
        channels: How many.
        relative: To the largest weight of the same output, whose scale they share.
    """
    weight = layer.weight.detach().abs()
    if relative:
        outputs = weight.flatten(1).amax(1).clamp_min(torch.finfo(weight.dtype).tiny)
        weight = weight / outputs.view(-1, *[1] * (weight.ndim - 1))
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    # (O, I / g, k...) -> (g, O / g, I / g, k...): group by group, each its own channels.
    by_group = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).amax((1, 3))
    return by_group.reshape(channels, -1).amax(1)


def _power_of_two(scale: Tensor) -> Tensor:
    """Round to powers of two; a channel that is always 0 stays as it is."""
    limit = _LARGEST_EXPONENT
    exponent = scale.log2().round().nan_to_num(0.0, 0.0, 0.0).clamp(-limit, limit)
    return exponent.exp2()


@torch.no_grad()
def _rescale(first: Layer, second: Layer, scale: Tensor) -> None:
    """Divide the channels by ``scale`` where they are written, multiply where they are read."""
    first.weight /= scale.view(-1, *[1] * (first.weight.ndim - 1))
    if first.bias is not None:
        first.bias /= scale
    groups = 1 if isinstance(second, nn.Linear) else second.groups
    outputs, inputs = second.weight.shape[:2]
    each = scale.repeat_interleave(groups * inputs // len(scale)).view(groups, 1, inputs)
    each = each.expand(groups, outputs // groups, inputs).reshape(outputs, inputs)
    second.weight *= each.view(outputs, inputs, *[1] * (second.weight.ndim - 2))
