"""What ``model.onnx`` takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OnnxOptions:
    """What ``model.onnx`` takes.

    Args:
        dynamic_size: Images of any height and width, where the network is built for that.
        pixels: ``uint8`` images ``(N, H, W, C)``, normalised inside, in the place of normalised
            ``float32`` images ``(N, C, H, W)``.
    """

    dynamic_size: bool = False
    pixels: bool = False
