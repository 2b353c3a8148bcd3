"""Let the blocks of a network grow branches in training, and cut those that become weak.

Every so many epochs, before the first batch, the weak ones of the grown branches go, and then the
block of the highest score grows. Scores are summed over all updates since the last time.

Source:
    Huang et al., DyRep, CVPR 2022, algorithm 1, https://arxiv.org/abs/2203.12868
    Official code: https://github.com/hunto/DyRep

Differences: weak branches go before a block grows, so that a new one is trained before it is
judged; the average of the weights grows along; see also :mod:`repblocks.expansion.dyrep`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from typing_extensions import override

from repblocks.blocks import ConvBlock
from repblocks.branches import check_count
from repblocks.errors import ConfigurationError, NotFoldable
from repblocks.expansion import cut_, grow_, saliency, weak_branches
from repblocks.expansion.dyrep import GROWN, changing_branch
from repblocks.expansion.grown import is_grown, summed
from repblocks.training.classifier import ImageClassifier
from repblocks.training.config import RepOptimizerConfig
from repblocks.training.refitting import refit_

_logger = logging.getLogger(__name__)


class DyRep(pl.Callback):
    """Grow and cut branches of the conv blocks of a network.

    A block grows once, and only if its kernel has more than one tap. Evaluation mode computes the
    same before and after; so does the averaged network, which gets the same branches. A run that
    is resumed grows as the whole one does: the checkpoint says by its names what was grown.

    Args:
        every_n_epochs: Epochs from one change to the next.
        until_epoch: No change from this epoch on; None for the whole run.
        num_blocks: Blocks that grow at a time.
        threshold: Strength below which a branch is cut, see
            :func:`~repblocks.expansion.dyrep.weak_branches`.
        branches: What a block grows, see :func:`~repblocks.expansion.dyrep.grow_`.
        seed: Of the new weights, together with the epoch.

    Raises:
        ConfigurationError: if an argument is out of range, the network is not an
            :class:`~repblocks.training.classifier.ImageClassifier`'s, runs in several processes, is
            compiled, or is trained by RepOptimizer.
    """

    def __init__(
        self,
        every_n_epochs: int = 5,
        until_epoch: int | None = None,
        *,
        num_blocks: int = 1,
        threshold: float = 0.1,
        branches: Sequence[str] = GROWN,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_count("every_n_epochs", every_n_epochs)
        check_count("num_blocks", num_blocks)
        if until_epoch is not None:
            check_count("until_epoch", until_epoch)
        self.every_n_epochs, self.until_epoch = every_n_epochs, until_epoch
        self.num_blocks, self.threshold = num_blocks, threshold
        self.branches, self.seed = tuple(branches), seed
        self._scores: dict[str, Tensor] = {}

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the network can change in this run."""
        if trainer.world_size > 1:
            raise ConfigurationError(
                "DyRep changes the parameters of the network, which runs in several processes do "
                f"not allow, got {trainer.world_size} of them; train with trainer.devices=1."
            )
        config = _classifier(pl_module).config
        if config.compile or config.cuda_graph:
            raise ConfigurationError(
                "DyRep changes the network, so that compile and cuda_graph must be false."
            )
        if isinstance(config.optimizer, RepOptimizerConfig):
            raise ConfigurationError(
                "DyRep grows branches, and RepOptimizer trains plain kernels in place of them: "
                "choose another optimizer, or leave callbacks=dyrep out."
            )

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add up the scores of the blocks that may grow."""
        for path, block in _growing(_classifier(pl_module).model):
            score = saliency(block)
            before = self._scores.get(path)
            self._scores[path] = score if before is None else before.to(score) + score

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Change the network if it is time."""
        epoch = trainer.current_epoch
        is_over = self.until_epoch is not None and epoch >= self.until_epoch
        if batch_idx == 0 and epoch > 0 and epoch % self.every_n_epochs == 0 and not is_over:
            self._change(trainer, _classifier(pl_module), batch[0])

    def _change(self, trainer: pl.Trainer, classifier: ImageClassifier, images: Tensor) -> None:
        networks = [classifier.model] + ([] if classifier.ema is None else [classifier.ema.module])
        changes = [
            f"cut {path}: {', '.join(names)}"
            for path, _ in [*_blocks(classifier.model)]
            if (names := self._cut([_block(network, path) for network in networks], path))
        ]
        num_grown = 0
        for path in sorted(self._scores, key=lambda path: (-float(self._scores[path]), path)):
            if num_grown < self.num_blocks:
                names = self._grow(networks, path, images, trainer.current_epoch)
                num_grown += bool(names)
                changes += [f"grew {path}: {', '.join(names)}"] if names else []
        self._scores = {}
        if changes:
            # An optimizer that is built for the network now tells the order of its parameters.
            fresh: Any = classifier.configure_optimizers()
            refit_(trainer.optimizers[0], fresh["optimizer"].param_groups)
            rank_zero_only(_logger.info)(f"DyRep {'; '.join(changes)}.")

    def _cut(self, blocks: Sequence[ConvBlock], path: str) -> Sequence[str]:
        if not any(map(is_grown, summed(blocks[0]))):
            return ()
        with _left_where_impossible(path):
            _check(blocks)
            weak = weak_branches(blocks[0], self.threshold, grown=True)
            for block in blocks if weak else ():
                cut_(block, weak)
            return weak
        return ()

    def _grow(
        self, networks: Sequence[nn.Module], path: str, images: Tensor, epoch: int
    ) -> Sequence[str]:
        names: tuple[str, ...] = ()
        with _left_where_impossible(path), torch.random.fork_rng(devices=[]):
            _check([_block(network, path) for network in networks])
            for network in networks:
                torch.default_generator.manual_seed(self.seed + epoch)
                names = grow_(network, path, self.branches, [images])
        return names

    @override
    def state_dict(self) -> dict[str, Any]:
        """Give the scores, for a checkpoint."""
        return {"scores": {path: float(score) for path, score in self._scores.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores of a checkpoint."""
        self._scores = {path: torch.tensor(score) for path, score in state_dict["scores"].items()}


def _classifier(pl_module: pl.LightningModule) -> ImageClassifier:
    if not isinstance(pl_module, ImageClassifier):
        raise ConfigurationError(f"DyRep needs an ImageClassifier, got {type(pl_module).__name__}.")
    return pl_module


@contextmanager
def _left_where_impossible(path: str) -> Iterator[None]:
    try:
        yield
    except NotFoldable as error:
        rank_zero_only(_logger.warning)(f"DyRep leaves {path} as it is: {error}")


def _check(blocks: Sequence[ConvBlock]) -> None:
    """Check that a block and its average can change, before one of them does."""
    for block in blocks:
        changing_branch(block)


def _blocks(model: nn.Module) -> Iterator[tuple[str, ConvBlock]]:
    for path, block in model.named_modules():
        if isinstance(block, ConvBlock) and not block.is_deployed:
            yield path, block


def _growing(model: nn.Module) -> Iterator[tuple[str, ConvBlock]]:
    """Give the blocks that have not grown, and have more than one tap."""
    for path, block in _blocks(model):
        if max(block.shape.kernel_size) > 1 and not any(map(is_grown, summed(block))):
            yield path, block


def _block(model: nn.Module, path: str) -> ConvBlock:
    block = model.get_submodule(path)
    if not isinstance(block, ConvBlock):
        raise ConfigurationError(f"{path} is no conv block, got {type(block).__name__}.")
    return block
