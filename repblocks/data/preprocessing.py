"""What happens to an image before evaluation: plain values, and the transform made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor
from torchvision.transforms import Compose

from repblocks.errors import ConfigurationError

KEYS = ("input_size", "in_channels", "interpolation", "crop_pct", "crop_mode", "mean", "std")
_MODES = {1: "L", 3: "RGB"}


def evaluation_transform(preprocessing: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Build the transform of validation and prediction from what a data module recorded.

    Args:
        preprocessing: ``input_size`` ``[C, H, W]``, ``in_channels``, ``interpolation``,
            ``crop_pct``, ``crop_mode``, ``mean`` and ``std``, with the meaning they have in timm.

    Returns:
        A function from an image of any mode and size to a normalised float32 tensor
        ``(C, H, W)``.

    Raises:
        ConfigurationError: if a value is missing, or there are not 1 or 3 channels.
    """
    missing = [key for key in KEYS if key not in preprocessing]
    if missing:
        raise ConfigurationError(
            f"preprocessing lacks {', '.join(missing)}, got {sorted(preprocessing)}."
            " It has to hold what ImageDataModule.preprocessing returns."
        )
    evaluation = transforms_imagenet_eval(
        tuple(preprocessing["input_size"][-2:]),
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing["crop_mode"],
        interpolation=preprocessing["interpolation"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
    )
    return Compose([convert(preprocessing["in_channels"]), evaluation])


def convert(in_channels: int) -> Callable[[Image.Image], Image.Image]:
    """Build the step that gives an image of any mode this many channels.

    Raises:
        ConfigurationError: if ``in_channels`` is not 1 or 3.
    """
    if in_channels not in _MODES:
        raise ConfigurationError(
            f"in_channels must be 1 (grey) or 3 (colour) for images, got {in_channels}."
        )
    return partial(Image.Image.convert, mode=_MODES[in_channels])
