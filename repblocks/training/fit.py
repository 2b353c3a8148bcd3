"""Train a network, from built parts to checkpoints, logs and a picture of the curves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from repblocks.data import ImageDataModule
from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.expansion import match_branches_
from repblocks.training.annealing import Annealing, DecayAnnealing
from repblocks.training.checkpoint import check_weights, describe, read_checkpoint
from repblocks.training.claiming import CHECKPOINTS, METRICS, claimed
from repblocks.training.classifier import ImageClassifier
from repblocks.training.config import RepOptimizerConfig, TrainingConfig
from repblocks.training.cuda_graph import CudaGraph
from repblocks.training.curves import draw_curves
from repblocks.training.guard import NonFiniteGuard
from repblocks.training.metrics_log import MetricsLog
from repblocks.training.saving import BEST, LAST, checkpoint_callbacks
from repblocks.training.seeding import BatchSeed
from repblocks.training.teacher import build_teacher
from repblocks.training.trainer import build_trainer, quiet

_LOG_EVERY_N_STEPS = 50


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        metrics: The last value of everything measured, and ``best_val_top1``.
        best: The checkpoint with the highest ``val_top1``, if there was a validation.
        last: The checkpoint of the end, if one was written.
        seconds: The time of training and validation.
    """

    metrics: dict[str, float]
    best: Path | None
    last: Path | None
    seconds: float


def _resumed_step(
    classifier: ImageClassifier, ckpt_path: Path, max_epochs: int, max_steps: int
) -> int:
    """Check that a checkpoint fits before anything starts, and give its number of updates."""
    raw = read_checkpoint(ckpt_path).raw
    match_branches_(classifier, raw["state_dict"])
    check_weights(classifier, raw["state_dict"])
    try:
        num_done = raw["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        step = int(raw["global_step"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{ckpt_path} has no {error}: it cannot be continued.") from error
    limits = {"max_epochs": (num_done, max_epochs), "max_steps": (step, max_steps)}
    for name, (done, limit) in limits.items():
        if 0 < limit <= done:
            raise ConfigurationError(
                f"The run of {ckpt_path} is complete: {done} of trainer.{name}={limit} are done. "
                f"Nothing was changed. Raise trainer.{name} to train on, or deploy it: "
                f"deploy.py ckpt_path={ckpt_path}."
            )
    return step


def _count(trainer: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Read an option of the Trainer that must be a positive number."""
    value = trainer.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"trainer.{name} must be at least 1, got {value!r}.")
    return value


def _check_limits(trainer: Mapping[str, Any], config: TrainingConfig) -> None:
    if trainer.get("limit_train_batches") == 0:
        raise ConfigurationError("trainer.limit_train_batches must be more than 0, got 0.")
    clip = trainer.get("gradient_clip_val")
    if isinstance(clip, int | float) and clip < 0:
        raise ConfigurationError(
            f"trainer.gradient_clip_val must be at least 0, or null for no clipping, got {clip}."
        )
    if clip and config.adaptive_clip:
        raise ConfigurationError(
            f"Either trainer.gradient_clip_val or adaptive_clip can be set, got {clip} and "
            f"{config.adaptive_clip}."
        )
    if (clip or config.adaptive_clip) and isinstance(config.optimizer, RepOptimizerConfig):
        raise ConfigurationError(
            "trainer.gradient_clip_val and adaptive_clip must be null with "
            f"optimizer={config.optimizer.name}: what would be clipped is the size of another "
            "gradient, and the network would not train as branches do."
        )


def _tensorboard(output: Path, first_step: int) -> TensorBoardLogger:
    """Log for TensorBoard, and hide what the interrupted run logged after its checkpoint."""
    purge: dict[str, Any] = {"purge_step": first_step} if first_step else {}
    return TensorBoardLogger(output, name="", version="tensorboard", **purge)


def _callbacks(
    config: TrainingConfig, trainer: Mapping[str, Any], output: Path, folder: Path
) -> list[pl.Callback]:
    every = _count(trainer, "log_every_n_steps", _LOG_EVERY_N_STEPS)
    annealing = Annealing(config.anneal_share)
    decay, end = config.optimizer.weight_decay, config.optimizer.weight_decay_end
    has_validation = trainer.get("limit_val_batches") not in (0, 0.0)
    return [
        BatchSeed(config.seed),
        NonFiniteGuard(config.non_finite_patience),
        annealing,
        *([CudaGraph(compiled=config.compile)] if config.cuda_graph else []),
        *([] if end is None else [DecayAnnealing(decay, end)]),
        MetricsLog(output / METRICS, every),
        *checkpoint_callbacks(config, folder, annealing, has_validation=has_validation),
    ]


def _result(runner: pl.Trainer, folder: Path, seconds: float) -> TrainingResult:
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    for callback in runner.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor == "val_top1":
            score = callback.best_model_score
            metrics |= {} if score is None else {"best_val_top1": float(score)}
    best, last = folder / BEST, folder / LAST
    return TrainingResult(
        metrics=metrics,
        best=best if best.exists() else None,
        last=last if last.exists() else None,
        seconds=seconds,
    )


def _fit(
    runner: pl.Trainer, classifier: ImageClassifier, data: ImageDataModule, ckpt_path: Path | None
) -> None:
    try:
        runner.fit(classifier, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None  # Lightning turns Ctrl-C into a plain exit
        raise


def train(
    config: TrainingConfig,
    model: nn.Module,
    data: ImageDataModule,
    trainer: Mapping[str, Any],
    *,
    output: Path,
    description: Mapping[str, Any],
    ckpt_path: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> TrainingResult:
    """Train a network.

    Writes ``checkpoints/`` (``best.ckpt``, ``last.ckpt``, ``step_N.ckpt``), ``metrics.csv``,
    ``curves.png`` and ``tensorboard/`` into ``output``. A run that fails before its first
    checkpoint leaves none of them.

    Args:
        config: What happens in training.
        model: Maps images ``(N, C, H, W)`` to scores ``(N, num_classes)``; it is trained in place.
        data: The data set.
        trainer: Arguments of Lightning's Trainer: ``max_epochs``, ``precision``, ``devices``,
            ``gradient_clip_val``, ``accumulate_grad_batches`` and so on.
        output: The folder of the run.
        description: What checkpoints say about the run: ``config`` (nested dict) and ``model``
            (``name`` and ``kwargs`` in timm's registry).
        ckpt_path: A checkpoint to continue from, exactly.
        callbacks: More callbacks of Lightning.

    Raises:
        ConfigurationError: if an option is not possible, or ``output`` holds another run.
        CheckpointError: if ``ckpt_path`` cannot be read, or is of another network.
        NonFiniteLossError: if the loss was not finite several times in a row.
    """
    epochs = _count(trainer, "max_epochs")
    _check_limits(trainer, config)
    data.repeats = config.repeated_augmentation
    classifier = ImageClassifier(
        model,
        data.num_classes,
        config,
        batch_size=data.batch_size,
        description=describe(
            description, preprocessing=data.preprocessing, class_names=data.class_names
        ),
        teacher=build_teacher(config.distillation, data),
    )
    max_steps = trainer.get("max_steps", -1)
    step = 0 if ckpt_path is None else _resumed_step(classifier, ckpt_path, epochs, max_steps)
    folder = output / CHECKPOINTS
    pl.seed_everything(config.seed, verbose=False)
    runner = build_trainer(
        trainer,
        callbacks=[*callbacks, *_callbacks(config, trainer, output, folder)],
        tensorboard=_tensorboard(output, step + 1 if step else 0) if config.tensorboard else None,
        output=output,
    )
    start = time.perf_counter()
    with claimed(output, ckpt_path) if runner.is_global_zero else nullcontext(), quiet():
        _fit(runner, classifier, data, ckpt_path)
    seconds = time.perf_counter() - start
    if runner.is_global_zero and (output / METRICS).exists():
        draw_curves(output / METRICS, output / "curves.png")
    return _result(runner, folder, seconds)
