"""What changes in the course of training besides the learning rate, set anew before each update.

All of it is a function of the number of updates, so that nothing has to be stored for a resumed
run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import cos, pi
from typing import Any

import pytorch_lightning as pl
from torch import nn
from typing_extensions import override

from repblocks.blocks import RepBlock, anneal
from repblocks.training.optimization import DECAYED


def is_annealed(model: nn.Module) -> bool:
    """Tell whether a network has blocks that can be folded only after they were annealed."""
    return any(
        isinstance(module, RepBlock) and type(module).anneal is not RepBlock.anneal
        for module in model.modules()
    )


def _progress(trainer: pl.Trainer) -> float:
    """Give the share of the updates that are done."""
    return min(1.0, trainer.global_step / trainer.estimated_stepping_batches)


class _SetBeforeEachUpdate(pl.Callback, ABC):
    """Set something before the first update, and after each for the next."""

    @abstractmethod
    def set(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set it; may be called at any time, and as often as one wants."""

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.set(trainer, pl_module)

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.set(trainer, pl_module)


class DecayAnnealing(_SetBeforeEachUpdate):
    """Change the weight decay along half a cosine, from its first value to its last.

    Source:
        Vasu et al., MobileOne, CVPR 2023, section 4.1, https://arxiv.org/abs/2206.04040

    Args:
        start: Before the first update.
        end: After the last.
    """

    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = end

    @override
    def set(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the decay of the next update."""
        share = 0.5 * (1 + cos(pi * _progress(trainer)))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if group.get(DECAYED):
                    group["weight_decay"] = self.end + (self.start - self.end) * share


class Annealing(_SetBeforeEachUpdate):
    """Anneal the blocks that want it, and those of the averaged network alike.

    They are annealed completely before the end of training: what remains of it trains the function
    that is deployed.

    Args:
        share: Of all updates; after it the annealing is complete.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.is_complete = True
        self._is_needed: bool | None = None

    @override
    def set(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set what the next update needs, before a checkpoint is written."""
        if self._is_needed is None:
            self._is_needed = is_annealed(pl_module)
        if self._is_needed:
            progress = min(1.0, _progress(trainer) / self.share)
            anneal(pl_module, progress)
            self.is_complete = progress == 1
