"""Classify image files with a written form, prepared and labelled as the artifact says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from repblocks.deployment.formats import get_format
from repblocks.deployment.load import CONFIG_FILE, read_config
from repblocks.deployment.manifest import check_files
from repblocks.deployment.opening import Opened, forms_in, open_best, open_form
from repblocks.deployment.preparing import labels_of, preparation
from repblocks.errors import CheckpointError, ConfigurationError, DataError


@dataclass(frozen=True)
class Prediction:
    """One class of one image.

    Args:
        label: Its name, or its index where the artifact has no names.
        index: Its place in the scores.
        probability: The softmax of the scores.
    """

    label: str
    index: int
    probability: float


class Classifier:
    """An opened artifact.

    Args:
        folder: What ``deploy.py`` wrote.
        form: The form to run; by default the best one that runs here.
        trust: Whether a form that holds code may run.

    Attributes:
        form: The name of the form that runs.

    Raises:
        CheckpointError: if a file is missing, damaged or not the one that was written.
        ConfigurationError: if the form is not there, its package is not installed, it holds code
            and is not trusted, or the artifact does not say how to prepare an image.
    """

    def __init__(self, folder: Path, form: str | None = None, *, trust: bool = False) -> None:
        check_files(folder, CONFIG_FILE)
        config = read_config(folder)
        if "preprocessing" not in config:
            raise ConfigurationError(
                f"{folder} holds a folded ONNX file, which says nothing of images and their "
                "preparation. Run its model.onnx in ONNX Runtime."
            )
        self._preparation = preparation(config, folder / CONFIG_FILE)
        self._labels = labels_of(config, folder / CONFIG_FILE)
        self._run = _open(folder, form, trust)
        self.form = self._run.name

    def classify(
        self, paths: Sequence[Path], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[tuple[Path, list[Prediction] | DataError]]:
        """Classify image files, in their order.

        Args:
            paths: The files.
            top: How many classes to give of each.
            batch_size: Images to run at once.

        Yields:
            Each file with its classes, the most probable first, or with why it is no image.

        Raises:
            CheckpointError: if the form does not run.
        """
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            images = [self._read(path) for path in batch]
            found = iter(self._classified([x for x in images if isinstance(x, Tensor)], top))
            for path, image in zip(batch, images, strict=True):
                yield path, image if isinstance(image, DataError) else next(found)

    def _read(self, path: Path) -> Tensor | DataError:
        """Prepare an image as in training: in the colours of the network, without alpha."""
        try:
            return self._preparation.read(path)
        except DataError as error:
            return error

    def _classified(self, images: Sequence[Tensor], top: int) -> list[list[Prediction]]:
        if not images:
            return []
        scores = self._scores(torch.stack(list(images)))
        best = scores.double().softmax(dim=1).topk(min(top, scores.shape[1]), dim=1)
        return [
            [Prediction(self._label(i), i, p) for i, p in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _scores(self, images: Tensor) -> Tensor:
        scores = self._run(images)
        if self._labels and scores.shape[1] != len(self._labels):
            raise CheckpointError(
                f"The form {self.form} gives {scores.shape[1]} scores, and {CONFIG_FILE} names "
                f"{len(self._labels)} classes."
            )
        return scores

    def _label(self, index: int) -> str:
        return self._labels[index] if self._labels else str(index)


def _open(folder: Path, name: str | None, trust: bool) -> Opened:
    if name is None:
        return open_best(folder, trust=trust)
    form, there = get_format(name), [form.name for form in forms_in(folder)]
    if name not in there:
        raise ConfigurationError(
            f"{folder} has no form {name}; it has {', '.join(there) or 'none'}."
        )
    return open_form(folder, form, trust=trust)


def find_images(paths: Iterable[Path]) -> list[Path]:
    """List image files: those named, and those of each folder at any depth, in order of names.

    Raises:
        DataError: if a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        images = _images_below(path) if path.is_dir() else [path]
        if not images:
            kinds = " ".join(IMG_EXTENSIONS)
            raise DataError(f"{path} holds no image, which is a file that ends in {kinds}.")
        if not path.exists():
            raise DataError(f"There is no image and no folder {path}.")
        found += images
    return found


def _images_below(folder: Path) -> list[Path]:
    files = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return sorted(path for path in files if path.suffix.lower() in IMG_EXTENSIONS)
