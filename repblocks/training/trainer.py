"""Lightning's Trainer with what exact resume and one place for files need."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import RichModelSummary, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from repblocks.errors import ConfigurationError
from repblocks.training.saving import AtomicCheckpointIO

# What this library decides; the data shards itself, and validation is not part of a start.
_FIXED: dict[str, Any] = {
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,  # metrics_log.py counts the steps
}
_RESERVED = ("callbacks", "default_root_dir", "logger", "plugins", *_FIXED)
# Advice of Lightning that does not apply, and a warning about its own code.
_ADVICE = (
    r"The '\w+_dataloader' does not have many workers",
    r"Checkpoint directory .* exists and is not empty",
    r"Found \d+ module\(s\) in eval mode",  # frozen norms
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)
_CHATTER = ("pytorch_lightning", "lightning_fabric", "lightning_utilities")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's advertisements, and the advice that does not apply here."""
    loggers = [logging.getLogger(name) for name in _CHATTER]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _ADVICE:
            warnings.filterwarnings("ignore", message)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _ProgressBar(RichProgressBar):
    """Lightning's, without the version number that a folder has no need of."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def _displays(options: Mapping[str, Any]) -> list[pl.Callback]:
    wanted = {
        _ProgressBar: options.get("enable_progress_bar", True),
        RichModelSummary: options.get("enable_model_summary", True),
    }
    return [display() for display, is_wanted in wanted.items() if is_wanted is not False]


def build_trainer(
    options: Mapping[str, Any],
    *,
    callbacks: Sequence[pl.Callback] = (),
    tensorboard: TensorBoardLogger | None = None,
    output: Path | None = None,
) -> pl.Trainer:
    """Build Lightning's Trainer.

    Args:
        options: Its arguments, but for those that this library decides.
        callbacks: What to call, in this order.
        tensorboard: A logger, beside ``metrics.csv``.
        output: The folder of the run.

    Raises:
        ConfigurationError: if an argument is reserved or unknown, or its value not possible here.
    """
    reserved = sorted(set(options) & set(_RESERVED) - {"log_every_n_steps"})
    if reserved:
        raise ConfigurationError(
            f"trainer.{', trainer.'.join(reserved)} cannot be set: training decides it."
        )
    settings = {
        **options,
        **_FIXED,
        "callbacks": [*callbacks, *_displays(options)],
        "logger": tensorboard if tensorboard is not None else False,
        "default_root_dir": output,
        "plugins": [AtomicCheckpointIO()],
    }
    try:
        with quiet():
            trainer = pl.Trainer(**settings)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigurationError(f"Lightning's Trainer refuses its options: {error}") from error
    if options.get("sync_batchnorm") and isinstance(trainer.accelerator, CPUAccelerator):
        raise ConfigurationError(
            "trainer.sync_batchnorm=true needs GPUs, and the accelerator is the CPU: torch's "
            "SyncBatchNorm has no CPU implementation. Set trainer.sync_batchnorm=false."
        )
    return trainer
