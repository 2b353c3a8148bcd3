"""The images that the ranges of a quantized network are measured on."""

from __future__ import annotations

import torch
from torch import Tensor

from repblocks.data import ImageDataModule, evaluation_transform
from repblocks.data._images import Images
from repblocks.deployment.quantization.options import QuantizationConfig
from repblocks.errors import ConfigurationError, DataError

_BATCH = 32


def calibration_batches(data: ImageDataModule | None, config: QuantizationConfig) -> list[Tensor]:
    """Draw training images without repetition, prepared as in evaluation.

    Training images, as the accuracy of the quantized network is measured on the others. The same
    seed draws the same images, whatever the machine.

    Args:
        data: Of the run.
        config: How many at most, and which.

    Returns:
        Batches ``(N, C, H, W)`` of at most 32 images.

    Raises:
        ConfigurationError: if there is no data, or not one image.
    """
    if data is None:
        raise ConfigurationError(
            "An INT8 form needs images to measure its ranges on, and no data was given. Deploy a "
            "checkpoint of train.py, whose data is known, give images with data.root=DIR, or leave "
            "the INT8 formats out."
        )
    images = _training_images(data)
    if not len(images):
        raise ConfigurationError(
            "An INT8 form needs images to measure its ranges on, and the training set holds 0."
        )
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(images), generator=generator)
    transform = evaluation_transform(data.preprocessing)
    chosen = torch.stack([transform(images[i][0]) for i in order[: config.images].tolist()])
    return list(torch.split(chosen, _BATCH))


def _training_images(data: ImageDataModule) -> Images:
    try:
        data.prepare_data()
        return data.load("train")
    except DataError as error:
        raise ConfigurationError(
            f"An INT8 form needs training images to measure its ranges on: {error}"
        ) from error
