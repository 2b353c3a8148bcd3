"""Quantization as the runtimes do it, simulated in float32 with torch's own fake quantization.

Weights are rounded by output channel and symmetrically, what a layer reads by tensor and
asymmetrically. A layer is a convolution or a linear layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Range = tuple[float, float]


def quantizable_layers(model: nn.Module) -> dict[str, Layer]:
    """Give the layers that are quantized, by path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, Layer)}


def quantize_weight(weight: Tensor, *, half_range: bool) -> Tensor:
    """Round a weight to what it is after quantization.

    Args:
        weight: ``(C_out, ...)`` float32.
        half_range: To 7 bits, not 8.
    """
    largest = 63 if half_range else 127
    tiny = torch.finfo(weight.dtype).tiny
    scale = (weight.abs().flatten(1).amax(1) / largest).clamp_min(tiny)
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -largest, largest)


def quantize_activation(x: Tensor, measured: Range) -> Tensor:
    """Round what a layer reads to 256 values; 0 is one of them, as padding needs it.

    Args:
        x: Of any shape, float32.
        measured: Its smallest and largest value on the calibration images.
    """
    low, high = min(measured[0], 0.0), max(measured[1], 0.0)
    scale = max((high - low) / 255, torch.finfo(torch.float32).tiny)
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)


def measure_ranges(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Range]:
    """Measure the smallest and largest value that each layer reads; one that never runs has none.

    Args:
        model: In evaluation mode.
        batches: Images ``(N, C, H, W)``.
    """
    found: dict[str, Range] = {}

    def measure(path: str, x: Tensor) -> None:
        low, high = found.get(path, (torch.inf, -torch.inf))
        found[path] = (min(low, float(x.min())), max(high, float(x.max())))

    with reading(quantizable_layers(model), measure), torch.inference_mode():
        for batch in batches:
            model(batch)
    return found


@contextlib.contextmanager
def reading(layers: Mapping[str, Layer], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show what each layer reads, for a moment.

    Args:
        layers: By path.
        see: Called with the path and the tensor.
    """
    with contextlib.ExitStack() as stack:
        for path, layer in layers.items():
            handle = layer.register_forward_pre_hook(
                lambda _layer, inputs, path=path: see(path, inputs[0])
            )
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def quantized(
    layers: Mapping[str, Layer], ranges: Mapping[str, Range], *, half_range: bool
) -> Iterator[None]:
    """Run layers as if they were quantized, for a moment.

    Args:
        layers: By path; all of them have a range.
        ranges: What they read, by path.
        half_range: Of the weights.
    """
    weights = {path: layer.weight.data for path, layer in layers.items()}
    with contextlib.ExitStack() as stack:
        for path, layer in layers.items():
            handle = layer.register_forward_pre_hook(
                lambda _layer, inputs, path=path: (
                    quantize_activation(inputs[0], ranges[path]),
                    *inputs[1:],
                )
            )
            stack.callback(handle.remove)
        try:
            for path, layer in layers.items():
                layer.weight.data = quantize_weight(weights[path], half_range=half_range)
            yield
        finally:
            for path, layer in layers.items():
                layer.weight.data = weights[path]
