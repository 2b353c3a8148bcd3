"""metrics.csv, written so that a resumed run continues it with no row twice and none missing.

Lightning's CSV logger deletes the file when it is opened again, and its rows are written after
the checkpoint of the same update. Here rows are appended before a checkpoint is written, and the
checkpoint holds the size of the file, which a resumed run cuts it back to.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from typing_extensions import override

COLUMNS = ("step", "epoch", "lr", "train_loss", "val_loss", "val_top1", "val_top5")


class MetricsLog(pl.Callback):
    """Write a row every so many updates and after each validation, to the loggers too.

    ``train_loss`` is the loss of one batch of the first process, ``lr`` the learning rate of the
    next update.

    Args:
        path: The file, in a folder that exists.
        every_n_steps: How many updates there are between two rows of training.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write loss and learning rate."""
        is_update = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if is_update and trainer.global_step % self.every_n_steps == 0:
            lr = trainer.optimizers[0].param_groups[-1]["lr"]
            self._write(trainer, {"lr": lr, "train_loss": outputs["loss"].item()})

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what validation measured."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        names = ("val_loss", "val_top1", "val_top5")
        self._write(trainer, {name: metrics[name].item() for name in names})

    def _write(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch, **values}
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Give the size of the file in bytes."""
        return {"size": self.path.stat().st_size if self.path.exists() else 0}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Cut the file back to what it was when the checkpoint was written."""
        # A run that goes on in another folder starts a file of its own.
        if self.path.exists() and self.path.stat().st_size > state_dict["size"]:
            os.truncate(self.path, state_dict["size"])
