"""Any tree of images with one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Subset

from repblocks.branches import check_share
from repblocks.data._base import ImageDataModule
from repblocks.data._folders import check_classes, open_folder
from repblocks.data._images import Images
from repblocks.data._split import is_held_out
from repblocks.data.augmentation import Augmentation
from repblocks.errors import ConfigurationError, DataError


class ImageFolderDataModule(ImageDataModule):
    """Images of any size and format that PIL reads, their folders giving their classes.

    The tree is ``root/train/CLASS/...`` and ``root/val/CLASS/...``, or ``root/CLASS/...``, of
    which a part is held out for validation: evenly spaced files of each class, in the order of
    their names, always the same ones.

    Args:
        root: The folder of the tree.
        held_out: The share of each class for validation, where the tree is not divided already.
        image_size: Height and width in pixels that images are resized and cropped to.
        in_channels: 1 (grey) or 3 (colour).
        mean: Of each channel, for values in [0, 1].
        std: Of each channel.
        crop_pct: The share of the resized image that evaluation keeps.
        interpolation: How images of another size are resized, in training and evaluation:
            bilinear, bicubic or another of PIL's.
        batch_size: Images a step, in each process.
        num_workers: Processes that load images; 0 loads in the training process itself.
        seed: Of the order and the augmentation, not of the split.
        augmentation: Of the training images. None resizes and crops them and no more.

    Raises:
        ConfigurationError: if ``held_out`` is not between 0 and 1, or ``mean`` or ``std`` have
            not one value a channel.
    """

    def __init__(
        self,
        *,
        root: str | Path = "data",
        held_out: float = 0.1,
        image_size: int = 224,
        in_channels: int = 3,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        crop_pct: float = 0.875,
        interpolation: str = "bilinear",
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            augmentation=augmentation,
            interpolation=interpolation,
        )
        if not 0 < held_out < 1:
            raise ConfigurationError(f"held_out must be between 0 and 1, got {held_out}.")
        if not len(mean) == len(std) == in_channels:
            raise ConfigurationError(
                f"mean and std must have one value for each of {in_channels} channels,"
                f" got {list(mean)} and {list(std)}."
            )
        check_share("crop_pct", crop_pct)
        self.root = Path(root).expanduser()
        self.held_out = held_out
        self.image_size = image_size
        self.crop_pct = crop_pct
        self.in_channels = in_channels
        self.mean = tuple(mean)
        self.std = tuple(std)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # read once, never set
        """The names of the class folders in alphabetical order, which is that of the indices."""
        return tuple(open_folder(self.root / "train" if self._is_divided else self.root).classes)

    @property
    def _is_divided(self) -> bool:
        return (self.root / "train").is_dir() or (self.root / "val").is_dir()

    def load(self, split: str) -> Images:
        """List the images of ``split``.

        Raises:
            DataError: if a folder is missing, the classes of train and val differ, or no image
                would be left for one of them.
        """
        return self._divided(split) if self._is_divided else self._share(split)

    def _divided(self, split: str) -> Images:
        images = open_folder(self.root / split)
        check_classes(self.root / split, images.classes, list(self.class_names))
        return images

    def _share(self, split: str) -> Images:
        images = open_folder(self.root)
        held_out = is_held_out(images.targets, self.held_out)
        mine = [index for index, is_val in enumerate(held_out) if is_val == (split == "val")]
        if not mine:
            raise DataError(
                f"No image is left for {split} of the {len(images)} in {self.root.resolve()} with"
                f" held_out={self.held_out}. Change data.held_out, or add images."
            )
        return Subset(images, mine)
