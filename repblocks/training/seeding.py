"""Randomness as a function of (seed, process, epoch, batch) instead of a stream.

A stream of random numbers would have to be saved, for each process and each generator, at an
instant that is the same in a resumed run; loaders draw from it when they start, and a resumed run
starts them at other times. Seeding before each batch needs no state, so nothing can be forgotten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
from typing_extensions import override


class BatchSeed(pl.Callback):
    """Seed Python, NumPy and torch (CPU and GPU) before each training batch.

    Mixing, dropout and DropPath of batch b in epoch e on process r then depend on
    ``(seed, r, e, b)`` alone, whether the run was interrupted before it or not.

    Args:
        seed: The seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed for this batch."""
        key = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        # SeedSequence hashes the key well, so that neighbours have unrelated streams.
        pl.seed_everything(int(np.random.SeedSequence(key).generate_state(1)[0]), verbose=False)
