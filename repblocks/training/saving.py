"""When checkpoints are written, and that each one is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from typing_extensions import override

from repblocks.errors import CheckpointError
from repblocks.training.annealing import Annealing
from repblocks.training.config import TrainingConfig

BEST, LAST = "best.ckpt", "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the file, then rename, so that a name never stands for half a checkpoint.

    Lightning's own writes in the system's temporary folder, and moving from there to another file
    system copies.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write one checkpoint.

        Raises:
            CheckpointError: if the file system refuses it.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            raise CheckpointError(f"Cannot write the checkpoint {path}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's, but a run whose folder was moved keeps its best score when it is resumed."""

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Look for the files of the interrupted run where they are now; forget those that are not.

        A run that is continued in another folder thus looks for its best checkpoint anew.
        """
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in names}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        found = {path: score for path, score in scores.items() if Path(path).exists()}
        super().load_state_dict(
            {**state_dict, **moved, "best_k_models": found, "dirpath": self.dirpath}
        )


class BestCheckpoint(MovableCheckpoint):
    """Write the best checkpoint, of those that can be deployed.

    Args:
        annealing: Until it is complete, no kernel equals the network.
        options: Of Lightning's ``ModelCheckpoint``.
    """

    def __init__(self, annealing: Annealing, **options: Any) -> None:
        super().__init__(**options)
        self.annealing = annealing

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write one if it is the best so far."""
        if self.annealing.is_complete:
            super().on_validation_end(trainer, pl_module)


class StepCheckpoint(MovableCheckpoint):
    """Write a checkpoint every so many updates, but only where a run can be resumed exactly.

    That is between two updates, and not where a validation follows: Lightning would leave it out
    after resuming. The checkpoints of an epoch's end stand in for those.
    """

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write one if it is time."""
        num_batches = batch_idx + 1
        is_between = num_batches % trainer.accumulate_grad_batches == 0
        validated = trainer.val_check_batch
        is_validated = validated is not None and num_batches % validated == 0
        if is_between and not is_validated and not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def checkpoint_callbacks(
    config: TrainingConfig, folder: Path, annealing: Annealing, *, has_validation: bool
) -> list[ModelCheckpoint]:
    """Give the callbacks that write ``best.ckpt``, ``last.ckpt`` and ``step_N.ckpt``.

    Args:
        config: Says how often, and how many are kept.
        folder: Where they are written.
        annealing: There is no best one before it is complete.
        has_validation: Without it there is no best one.
    """
    shared: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    last = MovableCheckpoint(filename="last", save_on_train_epoch_end=True, **shared)
    best = BestCheckpoint(
        annealing,
        filename="best",
        monitor="val_top1",
        mode="max",
        save_on_train_epoch_end=False,
        **shared,
    )
    steps = StepCheckpoint(
        filename="step_{step}",
        auto_insert_metric_name=False,
        monitor="step",
        mode="max",
        save_top_k=config.keep_step_checkpoints,
        every_n_train_steps=config.checkpoint_every_n_steps,
        save_on_train_epoch_end=False,
        **shared,
    )
    wanted = {best: has_validation, steps: config.checkpoint_every_n_steps is not None, last: True}
    return [callback for callback, is_wanted in wanted.items() if is_wanted]


def newest_checkpoint(folder: Path) -> Path:
    """Give the checkpoint to resume from: the one written last.

    Args:
        folder: The ``checkpoints`` folder of a run.

    Raises:
        CheckpointError: if there is none.
    """
    found = [path for path in folder.glob("*.ckpt") if path.name != BEST]
    if not found:
        raise CheckpointError(
            f"No checkpoint to resume from in {folder}: looked for {LAST} and step_*.ckpt. "
            "Start the run anew, without ckpt_path."
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)
