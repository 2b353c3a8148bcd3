"""The images that a network given by name is judged and quantized with: a folder of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repblocks.cli.recorded_data import build_recorded_data, target_of
from repblocks.data import ImageDataModule
from repblocks.data.image_folder import ImageFolderDataModule
from repblocks.errors import ConfigurationError

_KEYS = ("in_channels", "mean", "std", "crop_pct", "interpolation")


def network_data(
    given: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> ImageDataModule | None:
    """Open a folder of images, prepared as the network was trained with.

    Args:
        given: Options of :class:`~repblocks.data.image_folder.ImageFolderDataModule`, its ``root``
            among them; none if there are no images.
        preprocessing: What timm knows of the network.

    Raises:
        ConfigurationError: if there is no ``root``, or images are prepared in a way that the data
            module does not have.
        DataError: if the folder holds no classes.
    """
    if not given:
        return None
    if "root" not in given or "_target_" in given:
        raise ConfigurationError(
            "With model=... data is a folder with one folder a class, or with train and val: give "
            f"data.root=DIR, and options of it. Got {', '.join(f'data.{key}' for key in given)}."
        )
    _, height, width = preprocessing["input_size"]
    crop, own = preprocessing["crop_mode"], ImageFolderDataModule.crop_mode
    if height != width or crop != own:
        raise ConfigurationError(
            f"The network takes images of {height}x{width} with the crop mode {crop}; data.root "
            f"gives square ones with the crop mode {own}. Leave data out."
        )
    known = {key: preprocessing[key] for key in _KEYS}
    node = {"_target_": target_of(ImageFolderDataModule), "image_size": height, **known}
    return build_recorded_data(node, given)
