"""CIFAR-10: 60000 colour 32x32 images in 10 classes.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from repblocks.data._base import ImageDataModule
from repblocks.data._download import download_missing
from repblocks.data._images import Images
from repblocks.data.augmentation import Augmentation
from repblocks.errors import DataError

_CLASS_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"


class CIFAR10DataModule(ImageDataModule):
    """The 50000 training images, and the 10000 of the test set for validation.

    Args:
        root: The folder with the unpacked ``cifar-10-batches-py`` in it.
        download: Whether to get it from the author if it is missing.
        batch_size: Images a step, in each process.
        num_workers: Processes that load images; 0 loads in the training process itself.
        seed: Of the order and the augmentation.
        augmentation: Of the training images. None leaves them as they are.
        interpolation: How images of another size are resized, in training and evaluation:
            bilinear, bicubic or another of PIL's.
    """

    source: type[datasets.CIFAR10] = datasets.CIFAR10
    class_names: tuple[str, ...] = tuple(_CLASS_NAMES.split())
    in_channels = 3
    image_size = 32
    # Of the 50000 training images.
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        *,
        root: str | Path = "data",
        download: bool = False,
        batch_size: int = 128,
        num_workers: int = 2,
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
        self.root = Path(root).expanduser()
        self.download = download

    def prepare_data(self) -> None:
        """Download and unpack the archive if that was asked for, in one process.

        Raises:
            DataError: if it cannot be had.
        """
        if self.download:
            download_missing(
                self.source.url,
                self.root,
                is_missing=lambda: bool(self._broken_files()),
                download=lambda: self.source(self.root, download=True),
            )

    def load(self, split: str) -> Images:
        """Read the images of ``split`` into memory, after comparing the checksums of all files.

        Raises:
            DataError: if files are missing or not the original ones.
        """
        broken = self._broken_files()
        if broken:
            raise DataError(
                f"{self.source.__name__} was looked for in"
                f" {(self.root / self.source.base_folder).resolve()}: missing or damaged are"
                f" {', '.join(broken)}. Set data.root to the folder that has"
                f" {self.source.base_folder} in it, unpack {self.source.filename} there, or set"
                " data.download=true."
            )
        return self.source(self.root, train=split == "train")

    def _broken_files(self) -> list[str]:
        folder = self.root / self.source.base_folder
        meta = [self.source.meta["filename"], self.source.meta["md5"]]
        files = [*self.source.train_list, *self.source.test_list, meta]
        return [name for name, md5 in files if not check_integrity(str(folder / name), md5)]
