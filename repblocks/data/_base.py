"""What every data module shares: deterministic loaders, shards, and an exact place to resume at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from repblocks.branches import check_choice
from repblocks.data._images import EvaluationImages, Images, TrainingImages
from repblocks.data._loader import ResumableLoader, collate
from repblocks.data.augmentation import Augmentation
from repblocks.data.preprocessing import evaluation_transform
from repblocks.data.sampler import EpochSampler, ShardedBatches
from repblocks.errors import ConfigurationError

Batch = tuple[Tensor, Tensor]
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class ImageDataModule(pl.LightningDataModule, ABC):
    """Labelled images for training and validation, the same ones in every run.

    The order of an epoch and the augmentation of each image depend on the seed and the epoch
    alone: not on workers, processes, or any global random state. Training that resumes from a
    checkpoint reads exactly the images that were left. Batches are ``(images, targets)``,
    float32 ``(N, C, H, W)`` and int64 ``(N,)``. Build the Trainer with
    ``use_distributed_sampler=False``: the images are divided here.

    Args:
        batch_size: Images a step, in each process.
        num_workers: Processes that load images beside each training process. 0 loads in the
            training process itself.
        seed: Of the order and the augmentation.
        augmentation: Of the training images. None leaves them as they are.
        interpolation: How images of another size are resized, in training and evaluation:
            bilinear, bicubic or another of PIL's.

    Attributes:
        class_names: The classes, in the order of their indices.
        in_channels: 1 (grey) or 3 (colour).
        image_size: Height and width of a batch in pixels.
        mean: Of each channel, subtracted from values in [0, 1].
        std: Of each channel, by which they are then divided.
        crop_pct: The share of the resized image that evaluation keeps.
        crop_mode: What evaluation keeps of an image that is not square, in timm's words.
        repeats: How often an epoch of training shows each of its images; see ``EpochSampler``.

    Raises:
        ConfigurationError: if ``batch_size`` is not positive, ``num_workers`` is negative,
            or PIL has no such interpolation.
    """

    class_names: tuple[str, ...]
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    crop_mode: str = "center"
    repeats: int = 1

    def __init__(
        self,
        *,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ConfigurationError(f"num_workers must be at least 0, got {num_workers}.")
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        self.interpolation = interpolation
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self._images: dict[str, Images] = {}
        self._train_sampler: EpochSampler | None = None
        self._resume_at: dict[str, int] | None = None

    @abstractmethod
    def load(self, split: str) -> Images:
        """Open the images of one split.

        Args:
            split: ``"train"`` or ``"val"``.

        Raises:
            DataError: if they are missing or broken.
        """

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The complete evaluation preprocessing, as values that JSON can hold."""
        return {
            "input_size": [self.in_channels, self.image_size, self.image_size],
            "in_channels": self.in_channels,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that ``stage`` needs: all of them but for ``"validate"``.

        What is missing is downloaded first, if that was asked for: a run has to know its images
        before there is a Trainer, which would call ``prepare_data``.
        """
        splits = ("val",) if stage == "validate" else ("train", "val")
        unopened = [split for split in splits if split not in self._images]
        if unopened:
            self.prepare_data()
        for split in unopened:
            self._images[split] = self.load(split)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Load augmented batches, from where a restored checkpoint stopped; the tail is dropped.

        Raises:
            ConfigurationError: if a process has less than one batch of images, or a checkpoint
                from the middle of an epoch does not fit this run.
        """
        self.setup("fit")
        images = self._images["train"]
        epoch, batch = self._take_position()
        sampler = EpochSampler(
            len(images),
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
            epoch=epoch,
            start=batch * self.batch_size,
            repeats=self.repeats,
        )
        if len(sampler) < self.batch_size:
            raise ConfigurationError(
                f"batch_size is {self.batch_size}, but each of {self._world_size} processes has"
                f" only {len(sampler)} of {len(images)} training images. Use a smaller"
                " data.batch_size."
            )
        self._train_sampler = sampler
        transform = self.augmentation.build(self.preprocessing)
        dataset = TrainingImages(images, transform, self.seed)
        return self._loader(dataset, sampler=sampler, batch_size=self.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Load this process's share of the validation images, in a fixed order."""
        self.setup("validate")
        images = self._images["val"]
        batches = ShardedBatches(
            len(images), self.batch_size, rank=self._rank, world_size=self._world_size
        )
        dataset = EvaluationImages(images, evaluation_transform(self.preprocessing))
        return self._loader(dataset, batch_sampler=batches)

    def state_dict(self) -> dict[str, int]:
        """Record the first batch that training has not consumed, for a checkpoint."""
        if self.trainer is None or self._train_sampler is None:
            return {}
        epoch = self._train_sampler.epoch
        batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if batch >= self.trainer.num_training_batches:
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batch": batch, **self._order_settings}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the next train loader start where ``state_dict`` was recorded."""
        # Lightning restores data modules also for an evaluation, which must not leave a trace.
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            self._resume_at = dict(state_dict)

    def _take_position(self) -> tuple[int, int]:
        saved, self._resume_at = self._resume_at, None
        if not saved:
            return (self.trainer.current_epoch if self.trainer else 0), 0
        changed = [
            f"{name} was {saved[name]} and is {value}"
            for name, value in self._order_settings.items()
            if saved.get(name, value) != value
        ]
        if changed and saved["batch"]:
            raise ConfigurationError(
                f"The checkpoint was written after batch {saved['batch']} of epoch"
                f" {saved['epoch']}, and training cannot continue from there: "
                f"{'; '.join(changed)}. Restore the settings, or resume from a checkpoint"
                " written at the end of an epoch."
            )
        return saved["epoch"], saved["batch"]

    @property
    def _order_settings(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self._world_size,
            "num_samples": len(self._images["train"]),
            "repeats": self.repeats,
        }

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _loader(self, dataset: Dataset[Any], **sampling: Any) -> ResumableLoader:
        return ResumableLoader(
            dataset,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A loader draws a seed for its workers in each epoch. Without a generator of its
            # own it would take it from the global one, and a resumed run would draw once more.
            generator=torch.Generator().manual_seed(self.seed),
            **sampling,
        )
