"""The Lightning module that trains any network which maps images to class scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from repblocks.blocks import set_execution
from repblocks.errors import ConfigurationError
from repblocks.training.config import MixConfig, TrainingConfig
from repblocks.training.optimization import build_optimizer, build_scheduler

Batch = tuple[Tensor, Tensor]


def _averaged(model: nn.Module, decay: float) -> ModelEmaV3:
    """Copy the network into timm's moving average, floating-point buffers included."""
    average = ModelEmaV3(model, decay=decay, use_warmup=True)
    # Not trained itself. In training mode only so that Lightning does not warn about it at the
    # start: it puts everything into evaluation mode before it validates.
    return average.requires_grad_(False).train()


def _mixing(config: MixConfig, label_smoothing: float, num_classes: int) -> Mixup | None:
    """Build timm's mixup, or nothing."""
    if not config.is_active:
        return None
    return Mixup(
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        prob=config.prob,
        switch_prob=config.switch_prob,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )


def _check_pairs(batch_size: int) -> None:
    if batch_size % 2:
        raise ConfigurationError(
            f"Mixup and CutMix blend pairs of images: a batch must be even, got {batch_size}. "
            "Choose an even batch_size, and a train loader with drop_last."
        )


class ImageClassifier(pl.LightningModule):
    """Train a network on labelled images.

    Args:
        model: Maps images ``(N, C, H, W)`` to scores ``(N, num_classes)``.
        num_classes: The classes of the data.
        config: What to do in training.
        batch_size: The images of one batch of one process; the learning rate is scaled with it.
        description: What a checkpoint says about the run, under the key ``"repblocks"``.

    Raises:
        ConfigurationError: if there are fewer than two classes, ``batch_size`` is odd and pairs of
            images are blended, or there is no such execution.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        config: TrainingConfig,
        *,
        batch_size: int,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigurationError(f"A classifier needs at least 2 classes, got {num_classes}.")
        if config.mix.is_active:
            _check_pairs(batch_size)
        set_execution(model, config.execution)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model
        self.config = config
        self.batch_size = batch_size
        self.description = dict(description or {})
        self.ema = None if config.ema_decay is None else _averaged(model, config.ema_decay)
        self.mix = _mixing(config.mix, config.label_smoothing, num_classes)
        self.loss: Callable[[Tensor, Tensor], Tensor] = (
            SoftTargetCrossEntropy()
            if self.mix is not None
            else LabelSmoothingCrossEntropy(config.label_smoothing)
        )
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.val_top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")
        if config.compile:
            self.model.compile()

    @property
    def evaluation_model(self) -> nn.Module:
        """The network to validate and deploy: the averaged one, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def forward(self, images: Tensor) -> Tensor:
        """Give the scores ``(N, num_classes)`` of the evaluation weights."""
        return self.evaluation_model(self._laid_out(images))

    def _laid_out(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.config.channels_last else torch.preserve_format
        return images.to(memory_format=layout)

    def _mixed(self, images: Tensor, targets: Tensor) -> Batch:
        if self.mix is None:
            return images, targets
        _check_pairs(len(images))
        return self.mix(images, targets)

    def training_step(self, batch: Batch, _batch_idx: int) -> Tensor:
        """Give the loss of one batch."""
        images, targets = self._mixed(*batch)
        loss = self.loss(self.model(self._laid_out(images)), targets)
        self.log("train_loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch: Batch, _batch_idx: int) -> None:
        """Measure one batch with the evaluation weights."""
        images, targets = batch
        scores = self(images)
        self.val_top1(scores, targets)
        self.val_top5(scores, targets)
        # metrics_log.py writes the rows, so that they are in the file before a checkpoint is.
        loss = functional.cross_entropy(scores, targets)
        self.log("val_loss", loss, batch_size=len(images), sync_dist=True, logger=False)
        self.log("val_top1", self.val_top1, on_epoch=True, prog_bar=True, logger=False)
        self.log("val_top5", self.val_top5, on_epoch=True, logger=False)

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule for the batches and processes of the Trainer."""
        trainer = self.trainer
        accumulated = trainer.accumulate_grad_batches
        optimizer = build_optimizer(
            self.model,
            self.config.optimizer,
            self.batch_size * trainer.world_size * accumulated,
        )
        # This loads the train loader, so that the number of batches is known below.
        num_updates = int(trainer.estimated_stepping_batches)
        scheduler = build_scheduler(
            optimizer,
            self.config.scheduler,
            num_updates=num_updates,
            updates_per_epoch=math.ceil(trainer.num_training_batches / accumulated),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate of the next update."""
        scheduler.step_update(self.trainer.global_step, metric)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            # This update is counted only after this hook.
            self.ema.update(self.model, step=self.trainer.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a network is rebuilt and deployed from."""
        checkpoint["repblocks"] = self.description
