"""Measure a network on validation images: loss, top-1, top-5 and each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from repblocks.data import ImageDataModule
from repblocks.training.trainer import build_trainer, quiet


@dataclass(frozen=True)
class Evaluation:
    """What was measured; accuracies are in [0, 1].

    Attributes:
        loss: The mean cross entropy.
        top1: The share of images whose class has the highest score.
        top5: The share of images whose class is among the five highest scores.
        num_images: How many images were seen.
        per_class: The top-1 accuracy of each class, by name; NaN for a class without images.
    """

    loss: float
    top1: float
    top5: float
    num_images: int
    per_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Give plain Python values."""
        return asdict(self)

    def table(self) -> Table:
        """Give a table to print, the worst class first."""
        caption = f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, loss {self.loss:.4f}"
        table = Table("class", "top-1", title=f"{self.num_images} images", caption=caption)
        worst_first = sorted(self.per_class.items(), key=lambda item: (item[1] != item[1], item[1]))
        for name, accuracy in worst_first:
            table.add_row(name, f"{accuracy:.2%}")
        return table


class _Evaluator(pl.LightningModule):
    """Only measures."""

    result: Evaluation

    def __init__(self, model: nn.Module, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.class_names = class_names
        self.cross_entropy = MeanMetric()
        self.top5 = MulticlassAccuracy(
            len(class_names), top_k=min(5, len(class_names)), average="micro"
        )
        self.confusion = MulticlassConfusionMatrix(len(class_names))

    def validation_step(self, batch: tuple[Tensor, Tensor], _batch_idx: int) -> None:
        images, targets = batch
        scores = self.model(images)
        self.cross_entropy.update(functional.cross_entropy(scores, targets), len(images))
        self.top5.update(scores, targets)
        self.confusion.update(scores, targets)

    def on_validation_epoch_end(self) -> None:
        counts = self.confusion.compute().double()  # true class x predicted class
        right, seen = counts.diagonal(), counts.sum(1)
        self.result = Evaluation(
            loss=float(self.cross_entropy.compute()),
            top1=float(right.sum() / seen.sum()),
            top5=float(self.top5.compute()),
            num_images=int(seen.sum()),
            per_class=dict(zip(self.class_names, (right / seen).tolist(), strict=True)),
        )


def validate(
    model: nn.Module, data: ImageDataModule, trainer: Mapping[str, Any] | None = None
) -> Evaluation:
    """Measure a network on the validation images of a data set.

    Args:
        model: Maps images ``(N, C, H, W)`` to scores ``(N, num_classes)``; its mode is kept.
        data: The data set.
        trainer: Arguments of Lightning's Trainer, for example ``accelerator`` or ``precision``.
    """
    runner = build_trainer({"enable_model_summary": False, **(trainer or {})})
    evaluator = _Evaluator(model, data.class_names)
    with quiet():
        runner.validate(evaluator, datamodule=data, verbose=False)
    return evaluator.result
