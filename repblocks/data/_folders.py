"""Read class-per-folder trees through torchvision, with errors that name the folder or file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder

from repblocks.errors import DataError

#: Modes of 32 bits: whole numbers and fractions.
_UNSCALED = ("I", "F")


def open_folder(folder: Path) -> ImageFolder:
    """List the images of a tree with one folder a class.

    Raises:
        DataError: if there is no such folder, no class in it, or a class without images.
    """
    try:
        return ImageFolder(folder, loader=read_image)
    except OSError as error:
        raise DataError(
            f"Images were looked for in {folder.resolve()}, in one folder a class, such as"
            f" {folder}/cat/1.jpg: {error}. Set data.root to the folder that holds them."
        ) from error


def read_image(path: str) -> Image.Image:
    """Decode an image file to RGB in 8 bits; those of 16 are scaled, which Pillow does not do.

    Raises:
        DataError: if it is missing or broken, or of 32 bits.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if mode not in _UNSCALED:
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} could not be read as an image: {error}. Replace the file or delete it."
        ) from error
    raise DataError(
        f"{path} holds numbers of 32 bits (mode {mode}), whose white is not known. Save it with 8 "
        "or 16 bits."
    )


def check_classes(folder: Path, found: list[str], expected: list[str]) -> None:
    """Compare the class folders that were found with those that have to be there.

    Raises:
        DataError: if they differ.
    """
    missing, surplus = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if missing or surplus:
        raise DataError(
            f"{folder.resolve()} must have {len(expected)} class folders and has {len(found)}:"
            f" missing {_some(missing)}, not expected {_some(surplus)}."
        )


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
