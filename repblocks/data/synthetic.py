"""Images made from nothing: each class is a pattern under noise, for tests and dry runs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from repblocks.data._base import ImageDataModule
from repblocks.data._images import Images, Labelled
from repblocks.data.augmentation import Augmentation
from repblocks.errors import ConfigurationError

_SPLITS = ("train", "val")
_GRID = 4


class SyntheticDataModule(ImageDataModule):
    """Noisy patterns, one a class, that a small network learns within an epoch.

    Image ``i`` of a split is the same in every run, whatever the seed, and has class
    ``i % num_classes``. Noise covers half of the range of the values.

    Args:
        num_classes: How many classes.
        image_size: Height and width in pixels.
        in_channels: 1 (grey) or 3 (colour).
        train_size: How many training images.
        val_size: How many validation images.
        batch_size: Images a step, in each process.
        num_workers: Processes that load images; 0 loads in the training process itself.
        seed: Of the order and the augmentation.
        augmentation: Of the training images. None leaves them as they are.
        interpolation: How images of another size are resized, in training and evaluation:
            bilinear, bicubic or another of PIL's.

    Raises:
        ConfigurationError: if a size is not positive or ``in_channels`` is not 1 or 3.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        image_size: int = 32,
        in_channels: int = 3,
        train_size: int = 512,
        val_size: int = 128,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            augmentation=augmentation,
            interpolation=interpolation,
        )
        sizes = {
            "num_classes": num_classes,
            "image_size": image_size,
            "train_size": train_size,
            "val_size": val_size,
        }
        problems = [f"{name} is {value}" for name, value in sizes.items() if value < 1]
        if problems:
            raise ConfigurationError(f"Sizes must be at least 1, but {'; '.join(problems)}.")
        if in_channels not in (1, 3):
            raise ConfigurationError(f"in_channels must be 1 or 3, got {in_channels}.")
        self.class_names = tuple(f"class_{index}" for index in range(num_classes))
        self.image_size = image_size
        self.in_channels = in_channels
        self.mean = (0.5,) * in_channels
        self.std = (0.25,) * in_channels
        self._sizes = {"train": train_size, "val": val_size}

    def load(self, split: str) -> Images:
        """Describe the images of ``split``; each is drawn when it is read."""
        return _Patterns(
            self._sizes[split],
            split=_SPLITS.index(split),
            num_classes=self.num_classes,
            shape=(self.image_size, self.image_size, self.in_channels),
        )


class _Patterns:
    def __init__(
        self, size: int, *, split: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        self.size = size
        self.split = split
        self.num_classes = num_classes
        self.shape = shape

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Labelled:
        target = index % self.num_classes
        height, width, channels = self.shape
        coarse = np.random.default_rng((len(_SPLITS), target)).random((_GRID, _GRID, channels))
        rows, columns = (np.arange(size) * _GRID // size for size in (height, width))
        noise = np.random.default_rng((self.split, index)).random(self.shape)
        pixels = np.uint8(255 * (0.5 * coarse[rows][:, columns] + 0.5 * noise))
        return Image.fromarray(pixels.squeeze() if channels == 1 else pixels), target
