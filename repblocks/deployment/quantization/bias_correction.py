"""Bias correction: what quantization adds to the mean of each channel is taken out of its bias.

Source:
    Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019,
    section 4.2, the empirical variant of its appendix, https://arxiv.org/abs/1906.04721.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from repblocks.deployment.quantization.simulation import (
    Layer,
    measure_ranges,
    quantizable_layers,
    quantized,
)

# All images run at once: this many values of them at most.
_VALUES = 2**24


def correct_biases_(model: nn.Module, batches: Sequence[Tensor], *, half_range: bool) -> None:
    """Change the biases in place so that quantized layers have the means of the others.

    Layer after layer: each is corrected for the errors of those before it, too, which are corrected
    themselves. A layer without a bias gets one.

    Args:
        model: In evaluation mode, not quantized.
        batches: Typical images ``(N, C, H, W)``.
        half_range: Of the weights.
    """
    ranges = measure_ranges(model, batches)
    layers = {path: m for path, m in quantizable_layers(model).items() if path in ranges}
    images = torch.cat(list(batches))
    images = images[: max(1, _VALUES // images[0].numel())]
    means: dict[str, Tensor] = {}

    def remember(path: str, output: Tensor) -> None:
        means.setdefault(path, _channel_means(layers[path], output))

    def correct(path: str, output: Tensor) -> Tensor | None:
        if path not in means:  # it runs again, and is corrected
            return None
        layer = layers[path]
        shift = means.pop(path) - _channel_means(layer, output)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(shift))
        layer.bias.data = layer.bias.data + shift
        return output + shift.view(-1, *[1] * (output.ndim - 1 - _channel_axis(layer, output)))

    with torch.no_grad():
        with _giving(layers, remember):
            model(images)
        with quantized(layers, ranges, half_range=half_range), _giving(layers, correct):
            model(images)


@contextlib.contextmanager
def _giving(
    layers: Mapping[str, Layer], see: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Show what each layer gives, for a moment; a tensor that is returned takes its place."""
    with contextlib.ExitStack() as stack:
        for path, layer in layers.items():
            handle = layer.register_forward_hook(
                lambda _layer, _inputs, output, path=path: see(path, output)
            )
            stack.callback(handle.remove)
        yield


def _channel_axis(layer: Layer, output: Tensor) -> int:
    return output.ndim - 1 if isinstance(layer, nn.Linear) else 1


def _channel_means(layer: Layer, output: Tensor) -> Tensor:
    return output.movedim(_channel_axis(layer, output), 0).flatten(1).mean(1)
