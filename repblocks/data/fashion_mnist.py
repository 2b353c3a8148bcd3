"""Fashion-MNIST: 70000 grey 28x28 images of clothes in 10 classes.

Source: Xiao et al., Fashion-MNIST, 2017, https://arxiv.org/abs/1708.07747
"""

from __future__ import annotations

from pathlib import Path

from torchvision import datasets

from repblocks.data._base import ImageDataModule
from repblocks.data._download import download_missing
from repblocks.data._idx import read_idx
from repblocks.data._images import ArrayImages, Images
from repblocks.data.augmentation import Augmentation
from repblocks.errors import DataError

_PREFIXES = {"train": "train", "val": "t10k"}


class FashionMNISTDataModule(ImageDataModule):
    """The 60000 training images, and the 10000 of the test set for validation.

    Args:
        root: The folder with the four files ``train-images-idx3-ubyte``,
            ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``,
            each with or without ``.gz``, or with torchvision's ``FashionMNIST/raw`` in it.
        download: Whether to get them from the authors if they are missing.
        batch_size: Images a step, in each process.
        num_workers: Processes that load images; 0 loads in the training process itself.
        seed: Of the order and the augmentation.
        augmentation: Of the training images. None leaves them as they are.
        interpolation: How images of another size are resized, in training and evaluation:
            bilinear, bicubic or another of PIL's.
    """

    class_names = tuple(datasets.FashionMNIST.classes)
    in_channels = 1
    image_size = 28
    # Of the 60000 training images.
    mean = (0.2860,)
    std = (0.3530,)

    def __init__(
        self,
        *,
        root: str | Path = "data",
        download: bool = False,
        batch_size: int = 128,
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
        self.root = Path(root).expanduser()
        self.download = download

    def prepare_data(self) -> None:
        """Download the files if that was asked for, in one process.

        Raises:
            DataError: if they cannot be had.
        """
        if self.download:
            names = self._names("train") + self._names("val")
            download_missing(
                "Fashion-MNIST",
                self.root,
                is_missing=lambda: not all(map(self._found, names)),
                download=lambda: datasets.FashionMNIST(self.root, download=True),
            )

    def load(self, split: str) -> Images:
        """Read the images of ``split`` into memory.

        Raises:
            DataError: if a file is missing or broken, or images and labels do not fit.
        """
        paths = [self._found(name) for name in self._names(split)]
        if not all(paths):
            wanted = " and ".join(self._names(split))
            raise DataError(
                f"Fashion-MNIST was looked for in {self.root.resolve()} and its folder"
                f" FashionMNIST/raw: {wanted} must be there, with or without .gz. Set"
                " data.root to the folder that has them, or data.download=true."
            )
        pixels, targets = (read_idx(path) for path in paths if path)
        if pixels.shape != (len(targets), 28, 28) or targets.max(initial=0) > 9:
            raise DataError(
                f"{paths[0]} and {paths[1]} do not belong together: images {pixels.shape}, labels"
                f" {targets.shape} up to {targets.max(initial=0)}. Expected are (N, 28, 28) and"
                " (N,) up to 9."
            )
        return ArrayImages(pixels, targets)

    @staticmethod
    def _names(split: str) -> list[str]:
        prefix = _PREFIXES[split]
        return [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]

    def _found(self, name: str) -> Path | None:
        folders = (self.root, self.root / "FashionMNIST" / "raw")
        candidates = (folder / f"{name}{end}" for folder in folders for end in ("", ".gz"))
        return next((path for path in candidates if path.is_file()), None)
