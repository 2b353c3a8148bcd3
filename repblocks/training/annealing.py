"""What changes in the course of training besides the learning rate, set anew before each update.

All of it is a function of the number of updates, so that nothing has to be stored for a resumed
run.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import nn
from typing_extensions import override

from repblocks.blocks import RepBlock, anneal


def is_annealed(model: nn.Module) -> bool:
    """Tell whether a network has blocks that can be folded only after they were annealed."""
    return any(
        isinstance(module, RepBlock) and type(module).anneal is not RepBlock.anneal
        for module in model.modules()
    )


class Annealing(pl.Callback):
    """Anneal the blocks that want it, and those of the averaged network alike.

    They are annealed completely before the end of training: what remains of it trains the function
    that is deployed.

    Args:
        share: Of all updates; after it the annealing is complete.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.is_complete = True

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set what the first update needs."""
        self._set(trainer, pl_module)

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Set what the next update needs, before a checkpoint is written."""
        self._set(trainer, pl_module)

    def _set(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_annealed(pl_module):
            done = trainer.global_step / trainer.estimated_stepping_batches
            progress = min(1.0, done / self.share)
            anneal(pl_module, progress)
            self.is_complete = progress == 1
