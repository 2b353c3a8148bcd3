"""How much each layer of a network loses by quantization, before any of it is quantized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repblocks.deployment.quantization.simulation import (
    measure_ranges,
    quantizable_layers,
    quantized,
)


@dataclass(frozen=True)
class LayerFriendliness:
    """What quantization finds in one layer.

    Args:
        path: Of the layer.
        lowest: Its smallest weight.
        highest: Its largest weight.
        outlier_ratio: The largest magnitude in a channel of its kernel over the median magnitude of
            that channel (zeros left out), in the channel where that is most: what is small there
            is rounded coarsely.
        channel_ratio: The largest magnitude of a channel over the median of all channels: what one
            scale for the whole weight would cost, which is not what is done here.
        sqnr_db: Power of the network's output over that of its error with this layer alone
            quantized, in decibels; None if there is no error.
        error_share: The part that this error is of the errors of all layers, in [0, 1].
    """

    path: str
    lowest: float
    highest: float
    outlier_ratio: float
    channel_ratio: float
    sqnr_db: float | None
    error_share: float


def measure_friendliness(
    model: nn.Module, batches: Sequence[Tensor], *, half_range: bool
) -> tuple[LayerFriendliness, ...]:
    """Quantize one layer at a time, and compare the outputs with those in float32.

    Args:
        model: In evaluation mode.
        batches: Typical images ``(N, C, H, W)``.
        half_range: Of the weights.
    """
    ranges = measure_ranges(model, batches)
    layers = {path: m for path, m in quantizable_layers(model).items() if path in ranges}
    expected = _outputs(model, batches)
    power = float(expected.square().mean())
    errors: dict[str, float] = {}
    for path, layer in layers.items():
        with quantized({path: layer}, ranges, half_range=half_range):
            errors[path] = float((_outputs(model, batches) - expected).square().mean())
    total = sum(errors.values()) or 1.0
    return tuple(
        LayerFriendliness(
            path,
            *_spread(layer.weight.detach()),
            10 * math.log10(power / errors[path]) if power and errors[path] else None,
            errors[path] / total,
        )
        for path, layer in layers.items()
    )


def _outputs(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches]).double()


def _spread(weight: Tensor) -> tuple[float, float, float, float]:
    """Give the range, the outlier ratio and the channel ratio."""
    magnitudes = weight.abs().flatten(1).double()
    largest = magnitudes.amax(1)
    inside = largest / magnitudes.masked_fill(magnitudes == 0, torch.nan).nanmedian(1).values
    across = largest.max() / largest[largest > 0].median() if largest.any() else torch.tensor(1.0)
    ratio = float(inside.nan_to_num(1.0).max())
    return float(weight.min()), float(weight.max()), ratio, float(across)
