"""What an artifact says about images and labels, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from repblocks.data._folders import read_image
from repblocks.data.preprocessing import KEYS, convert, evaluation_transform
from repblocks.errors import CheckpointError, ConfigurationError, DataError

_CROPS = ("center", "squash", "border")
_SHOWN = 80
_SMALLEST_CROP, _LARGEST_CROP = 0.1, 10.0
#: Of an image on the way into the network, and of what goes in.
_MOST_VALUES, _MOST_INPUTS = 2**27, 2**25


@dataclass(frozen=True, eq=False)
class Preparation:
    """How images are prepared, and what their classes are called.

    Args:
        size: ``(C, H, W)`` of what the network takes.
        crop_pct: The share of the resized image that is kept.
        transform: From an image to a normalised tensor of that size.
    """

    size: tuple[int, int, int]
    crop_pct: float
    transform: Callable[[Image.Image], Tensor]

    def read(self, path: Path) -> Tensor:
        """Read an image file and prepare it.

        Raises:
            DataError: if it is no image, is none of 8 or 16 bits, or is too large when resized.
        """
        try:
            image = read_image(str(path))
            width, height = image.size
            scale = max(self.size[1:]) / self.crop_pct / min(width, height)
            if prod(image.size) * max(scale, 1.0) ** 2 > _MOST_VALUES:
                raise DataError(
                    f"{path} is {width}x{height} pixels, which are too many once it is resized. "
                    "Cut the image, or leave it out."
                )
            return self.transform(image)
        except MemoryError as error:
            raise DataError(f"{path} does not fit into memory. Leave it out.") from error


def preparation(config: Mapping[str, Any], source: Path) -> Preparation:
    """Read how images are prepared.

    Args:
        config: Of an artifact.
        source: Its file, for the message.

    Raises:
        CheckpointError: if a value is not possible.
        ConfigurationError: if values are missing, or there are not 1 or 3 channels, as images have.
    """
    size = image_size(config, source)
    given = config["preprocessing"]
    is_complete = all(key in given for key in KEYS)
    try:
        convert(size[0])
        problem = _problem(given, size[0]) if is_complete else ""
        if problem:
            raise CheckpointError(f"{source} cannot be used: preprocessing.{problem}.")
        transform = evaluation_transform(given)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{source} does not say how to prepare an image: {error}"
        ) from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} cannot be used: preprocessing.interpolation is "
            f"{given['interpolation']!r}, which is unknown."
        ) from error
    return Preparation(size, float(given["crop_pct"]), transform)


def image_size(config: Mapping[str, Any], source: Path) -> tuple[int, int, int]:
    """Read the size ``(C, H, W)`` of what the network takes.

    Raises:
        CheckpointError: if there is none.
    """
    given = config.get("preprocessing") or {}
    size: Any = given.get("input_size") if isinstance(given, Mapping) else given
    is_list = isinstance(size, list | tuple) and len(size) == 3
    if not is_list or not all(type(n) is int and n > 0 for n in size) or prod(size) > _MOST_INPUTS:
        raise CheckpointError(
            f"{source} does not say how to prepare an image: preprocessing.input_size is "
            f"{_short(size)}, not [channels, height, width] of at most {_MOST_INPUTS} values."
        )
    return (size[0], size[1], size[2])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def labels_of(config: Mapping[str, Any], source: Path) -> list[str]:
    """Read the names of the classes; none if the artifact has none.

    Raises:
        CheckpointError: if they are no list of names, or not one for each score.
    """
    given = config.get("class_names") or []
    if not isinstance(given, list) or not all(isinstance(name, str | int) for name in given):
        raise CheckpointError(f"{source} cannot be used: class_names is no list of names.")
    expected = config.get("num_classes")
    if given and expected is not None and len(given) != expected:
        raise CheckpointError(
            f"{source} names {len(given)} classes, and its network gives {expected} scores."
        )
    return [str(name) for name in given]


def _problem(given: Mapping[str, Any], channels: int) -> str:
    """Say which value is not possible, and what is; empty if all are."""
    crop, mean, std = given["crop_pct"], given["mean"], given["std"]
    checks = {
        "in_channels": (given["in_channels"] == channels, f"{channels}, as in input_size"),
        "crop_pct": (
            _is_number(crop) and _SMALLEST_CROP <= crop <= _LARGEST_CROP,
            f"from {_SMALLEST_CROP} to {_LARGEST_CROP}",
        ),
        "crop_mode": (given["crop_mode"] in _CROPS, " or ".join(_CROPS)),
        "mean": (_are_numbers(mean, channels), f"{channels} numbers"),
        "std": (
            _are_numbers(std, channels) and all(one > 0 for one in std),
            f"{channels} numbers above 0",
        ),
    }
    wrong = (f"{key} must be {e}, got {given[key]!r}" for key, (ok, e) in checks.items() if not ok)
    return next(wrong, "")


def _are_numbers(values: Any, count: int) -> bool:
    is_list = isinstance(values, list | tuple) and len(values) == count
    return is_list and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)
