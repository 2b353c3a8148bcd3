"""Pre-processing as a part of the network: pixels in, normalised inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.deployment.load import read_config
from repblocks.errors import ConfigurationError


class Normalise(nn.Module):
    """From ``uint8`` pixels ``(N, H, W, C)`` to the normalised images that a network takes.

    Args:
        mean: Of each channel, of images in [0, 1].
        std: The same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Give ``(N, C, H, W)``; the same numbers as the data's own normalisation."""
        return (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std

    def pixels(self, images: Tensor) -> Tensor:
        """Give the pixels that are nearest to normalised images: their own, if they have such."""
        values = (images * self.std + self.mean) * 255
        return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def on_pixels(images: Tensor, folder: Path) -> Tensor:
    """Give the images ``(N, C, H, W)`` of the pixels that are nearest to normalised images.

    Raises:
        ConfigurationError: if the artifact's ``config.json`` records no normalisation.
    """
    normalise = normalisation(folder, images.shape[1])
    normalised: Tensor = normalise(normalise.pixels(images))
    return normalised


def normalisation(folder: Path, channels: int) -> Normalise:
    """Build the normalisation that the artifact's ``config.json`` records.

    Raises:
        ConfigurationError: if it records none for this number of channels.
    """
    recorded: dict[str, Any] = read_config(folder).get("preprocessing") or {}
    mean, std = recorded.get("mean", ()), recorded.get("std", ())
    if not (_is_for(mean, channels) and _is_for(std, channels)):
        raise ConfigurationError(
            f"onnx_export.pixels=true needs the mean and std of {channels} channels in the "
            f"recorded preprocessing, got mean {mean} and std {std}. Leave it out, or record them."
        )
    return Normalise(mean, std)


def _is_for(values: object, channels: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == channels
        and all(isinstance(value, int | float) for value in values)
    )
