"""The Lightning module that trains any network which maps images to class scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from repblocks.algebra.normalization import is_batch_norm
from repblocks.blocks import AveragedHeads, set_execution
from repblocks.errors import ConfigurationError
from repblocks.training.config import TrainingConfig
from repblocks.training.kernel_decay import kernel_penalty, penalised_names
from repblocks.training.loss import Loss, build_mixing, check_pairs
from repblocks.training.optimization import build_optimizer, build_scheduler
from repblocks.training.teacher import Teacher

Batch = tuple[Tensor, Tensor]


def _freeze_norms(model: nn.Module) -> None:
    """Leave norms in evaluation; Lightning keeps the mode of each module."""
    for module in model.modules():
        if is_batch_norm(module):
            module.eval()


def _averaged(model: nn.Module, decay: float, warmup: bool) -> ModelEmaV3:
    """Copy the network into timm's moving average, floating-point buffers included."""
    average = ModelEmaV3(model, decay=decay, use_warmup=warmup)
    # Not trained itself. In training mode only so that Lightning does not warn about it at the
    # start: it puts everything into evaluation mode before it validates.
    return average.requires_grad_(False).train()


def _all_but_classifier(model: nn.Module) -> list[nn.Parameter]:
    """Give what adaptive clipping acts on: all but the classifier that timm's networks name."""
    get_classifier: Any = getattr(model, "get_classifier", lambda: None)
    classifier = get_classifier()
    heads = classifier if isinstance(classifier, tuple | list) else [classifier]
    kept = {p for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
    return [parameter for parameter in model.parameters() if parameter not in kept]


class ImageClassifier(pl.LightningModule):
    """Train a network on labelled images.

    Args:
        model: Maps images ``(N, C, H, W)`` to scores ``(N, num_classes)``.
        num_classes: The classes of the data.
        config: What to do in training.
        batch_size: The images of one batch of one process; the learning rate is scaled with it.
        description: What a checkpoint says about the run, under the key ``"repblocks"``.
        teacher: Learnt from, if there is one; no part of this module and its checkpoints.

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
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigurationError(f"A classifier needs at least 2 classes, got {num_classes}.")
        if config.mix.is_active:
            check_pairs(batch_size)
        set_execution(model, config.execution)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model
        self.config = config
        self.batch_size = batch_size
        self.description = dict(description or {})
        self.ema = (
            None
            if config.ema_decay is None
            else _averaged(model, config.ema_decay, config.ema_warmup)
        )
        self.mix = build_mixing(config.mix, config.label_smoothing, num_classes)
        # Auxiliary heads are dropped at deployment: what a teacher told them would be lost.
        is_distilled = any(isinstance(module, AveragedHeads) for module in model.modules())
        self.loss = Loss(config, is_distilled=is_distilled)
        self.teacher = teacher
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.val_top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")
        if config.freeze_norms:
            _freeze_norms(model)
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

    def _resized(self, images: Tensor) -> Tensor:
        size = self.config.resolution.at(self.current_epoch)
        if size is None or images.shape[-2:] == (size, size):
            return images
        return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)

    def _mixed(self, images: Tensor, targets: Tensor) -> Batch:
        if self.mix is None:
            return images, targets
        check_pairs(len(images))
        return self.mix(images, targets)

    def training_step(self, batch: Batch, _batch_idx: int) -> Tensor:
        """Give the loss of one batch."""
        images, targets = self._mixed(*batch)
        taught = None if self.teacher is None else self.teacher(self._laid_out(images))
        loss = self.loss(self.model(self._laid_out(self._resized(images))), targets, taught)
        if self.config.kernel_decay:
            loss = loss + self.config.kernel_decay * kernel_penalty(self.model)
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
            penalised_names(self.model) if self.config.kernel_decay else (),
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

    def on_fit_start(self) -> None:
        """Bring the teacher to where the images are."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer was told, or each output by the size of its weights."""
        if self.config.adaptive_clip is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            adaptive_clip_grad(_all_but_classifier(self.model), self.config.adaptive_clip)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a network is rebuilt and deployed from."""
        checkpoint["repblocks"] = self.description
