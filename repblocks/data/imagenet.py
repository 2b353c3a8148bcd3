"""ImageNet-1k: 1000 classes, 1.28 million training images and 50000 for validation.

Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015,
https://arxiv.org/abs/1409.0575
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.imagenet_info import ImageNetInfo

from repblocks.branches import check_share
from repblocks.data._base import ImageDataModule
from repblocks.data._folders import check_classes, open_folder
from repblocks.data._images import Images
from repblocks.data.augmentation import Augmentation


class ImageNetDataModule(ImageDataModule):
    """ImageNet-1k as folders ``root/train/n01440764/...`` and ``root/val/n01440764/...``.

    That is the usual layout: each of the 1000 archives in ``ILSVRC2012_img_train.tar`` unpacked
    into a folder of its name, and the validation images sorted into such folders.

    Args:
        root: The folder that has ``train`` and ``val`` in it.
        image_size: Height and width in pixels that images are resized and cropped to.
        batch_size: Images a step, in each process.
        num_workers: Processes that load images; 0 loads in the training process itself.
        seed: Of the order and the augmentation.
        augmentation: Of the training images. None resizes and crops them and no more.
        crop_pct: The share of the resized image that evaluation keeps: of 256 pixels the central
            224, as in He et al., 2015, and the papers since.
        interpolation: How images of another size are resized, in training and evaluation:
            bilinear, bicubic or another of PIL's.
    """

    in_channels = 3
    mean = IMAGENET_DEFAULT_MEAN
    std = IMAGENET_DEFAULT_STD

    def __init__(
        self,
        *,
        root: str | Path = "data/imagenet",
        image_size: int = 224,
        batch_size: int = 256,
        num_workers: int = 8,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        crop_pct: float = 0.875,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            augmentation=augmentation,
            interpolation=interpolation,
        )
        check_share("crop_pct", crop_pct)
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.crop_pct = crop_pct

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # read once, never set
        """Folder name and description, as no description alone is unique."""
        info = ImageNetInfo()
        return tuple(map(" ".join, zip(info.label_names(), info.label_descriptions(), strict=True)))

    def load(self, split: str) -> Images:
        """List the images of ``split``.

        Raises:
            DataError: if the folder is missing or has not the 1000 classes.
        """
        images = open_folder(self.root / split)
        check_classes(self.root / split, images.classes, ImageNetInfo().label_names())
        return images
