"""A loss that is not finite changes nothing, and several in a row end the run."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from typing_extensions import override

from repblocks.errors import NonFiniteLossError

_logger = logging.getLogger(__name__)


def _all_finite(tensors: list[Tensor]) -> bool:
    """Tell whether every value is finite, with one transfer from the device."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    # The norm is not finite if any value is not, or is so large that its square is not; it is
    # several times faster than to look at each value.
    return bool(get_total_norm(floating).isfinite())


class NonFiniteGuard(pl.Callback):
    """Leave out updates whose loss or gradient is not finite, and stop if there are too many.

    Such an update has no effect: neither on weights and optimizer, nor on buffers (a NaN image
    would otherwise stay in the statistics of every BatchNorm for ever). All processes leave out
    the same updates. With ``16-mixed`` precision infinite gradients of a finite loss are normal,
    and the gradient scaler handles them. Checkpoints of weights that are not finite are refused.

    Args:
        patience: How many such updates in a row stop the run.
    """

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.num_in_a_row = 0
        self._losses: list[Tensor] = []
        self._buffers: list[Tensor] = []

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the buffers at the first batch of an update."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._losses = []
            self._buffers = [buffer.detach().clone() for buffer in pl_module.buffers()]

    @override
    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Remember the loss."""
        self._losses.append(loss.detach())

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Cancel the update if it is not finite.

        Raises:
            NonFiniteLossError: if it is one too many in a row.
        """
        checked = list(self._losses)
        precision = trainer.precision_plugin
        if not (isinstance(precision, MixedPrecision) and precision.scaler is not None):
            checked += [p.grad for p in pl_module.parameters() if p.grad is not None]
        if trainer.strategy.reduce_boolean_decision(_all_finite(checked)):
            self.num_in_a_row = 0
            return
        self.num_in_a_row += 1
        rank_zero_only(_logger.warning)(
            "Update %d is left out: its loss or gradient is not finite (%d in a row).",
            trainer.global_step + 1,
            self.num_in_a_row,
        )
        # An optimizer passes over parameters without a gradient: no decay, no momentum.
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(pl_module.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        if self.num_in_a_row >= self.patience:
            raise NonFiniteLossError(
                f"The loss or its gradient was not finite in {self.num_in_a_row} updates in a row, "
                f"the last one in epoch {trainer.current_epoch}, update {trainer.global_step + 1}. "
                "Checkpoints hold finite weights only. Lower optimizer.lr, add a warm-up or "
                "gradient clipping, or look for broken images."
            )

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to write weights that are not finite over ones that are.

        Raises:
            NonFiniteLossError: if a weight or a buffer is not finite.
        """
        if not _all_finite(list(pl_module.state_dict().values())):
            raise NonFiniteLossError(
                f"The weights are not finite after update {trainer.global_step}, so no checkpoint "
                "was written. Earlier ones are kept. Lower optimizer.lr."
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Give the count, for a resumed run."""
        return {"num_in_a_row": self.num_in_a_row}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the count of the interrupted run."""
        self.num_in_a_row = state_dict["num_in_a_row"]
