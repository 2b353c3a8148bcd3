"""Map-style data sets of PIL images, and the two wrappers that turn them into tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from repblocks.data._loader import Samples, read_batch
from repblocks.data._seeding import random_state_kept, seed_everything
from repblocks.errors import DataError

Transform = Callable[[Image.Image], Tensor]
Labelled = tuple[Image.Image, int]
Position = tuple[int, ...] | int


class Images(Protocol):
    """What a data module loads: a sized sequence of images with their class indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Labelled: ...


class ArrayImages:
    """Images that are held in memory.

    Args:
        pixels: ``(N, H, W)`` for grey or ``(N, H, W, 3)`` for colour images, uint8.
        targets: Class indices ``(N,)``.
    """

    def __init__(self, pixels: npt.NDArray[np.uint8], targets: npt.NDArray[np.integer]) -> None:
        self.pixels = pixels
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Labelled:
        return Image.fromarray(self.pixels[index]), int(self.targets[index])


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Augment each image as a function of the seed, the epoch, its index and repetition alone.

    It is indexed by what ``EpochSampler`` yields. A bare index stands for epoch 0: Lightning's
    ``overfit_batches`` puts a sequential sampler of its own in place of ours.
    """

    def __init__(self, images: Images, transform: Transform, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Position) -> tuple[Tensor, int]:
        with random_state_kept():
            return self._augmented(position)

    def __getitems__(self, positions: list[Position]) -> Samples | DataError:
        """Read a batch, the method that torch's loaders prefer to one call an image."""
        # Saving the state of the generators costs as much as the augmentation of an image.
        with random_state_kept():
            return read_batch(self._augmented, positions)

    def _augmented(self, position: Position) -> tuple[Tensor, int]:
        place = position if isinstance(position, tuple) else (0, position)
        image, target = self.images[place[1]]
        seed_everything(self.seed, *place)
        return self.transform(image), target


class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """Pass each image through the evaluation transform."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.images[index]
        return self.transform(image), target

    def __getitems__(self, indices: list[int]) -> Samples | DataError:
        """Read a batch."""
        return read_batch(self.__getitem__, indices)
