"""The optimizer and the schedule: timm's, with the parameters that each block wants decayed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from repblocks.blocks import RepBlock
from repblocks.errors import ConfigurationError
from repblocks.training.config import OptimizerConfig, RepOptimizerConfig, SchedulerConfig
from repblocks.training.rep_optimizer import build_rep_optimizer

#: The key of a group that marks it as decayed, however much it is at the moment.
DECAYED = "is_decayed"
_logger = logging.getLogger(__name__)


def decayed_names(model: nn.Module) -> set[str]:
    """Give the names of the parameters that blocks want decayed whatever their shape."""
    return {
        f"{path}.{name}" if path else name
        for path, block in model.named_modules()
        if isinstance(block, RepBlock)
        for name in block.decayed_parameters()
    }


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    exempt: Collection[str] = (),
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with and those without weight decay.

    Biases, 1-d parameters and what a timm model's ``no_weight_decay()`` names are not decayed,
    except where a block declares it: folding makes some scales part of a kernel.

    Args:
        model: The network that is trained.
        weight_decay: The decay of the decayed ones.
        exempt: Names of more parameters that are not decayed.
        decay_all: Whether all others are.

    Returns:
        The groups that are not empty, as torch's optimizers take them.
    """
    declared = decayed_names(model)
    excluded = set(getattr(model, "no_weight_decay", set)())
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_kernel = parameter.ndim > 1 and not name.endswith(".bias") and name not in excluded
        is_decayed = (decay_all or is_kernel or name in declared) and name not in exempt
        (decayed if is_decayed else free).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": free, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay, DECAYED: True},
    ]
    return [group for group in groups if group["params"]]


def scaled_lr(config: OptimizerConfig, global_batch: int) -> float:
    """Scale the learning rate by the global batch, and log it.

    Source:
        Goyal et al., Accurate, Large Minibatch SGD, https://arxiv.org/abs/1706.02677
    """
    lr = config.lr * global_batch / config.base_batch_size
    rank_zero_only(_logger.info)(
        f"Learning rate {lr:g} = {config.lr:g} x {global_batch} images an update"
        f" / optimizer.base_batch_size {config.base_batch_size}."
    )
    return lr


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, global_batch: int, exempt: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer of a network.

    Args:
        model: The network that is trained.
        config: What to build.
        global_batch: The images of one update, over all processes.
        exempt: Names of parameters that are not decayed here.

    Raises:
        ConfigurationError: if nothing can be trained, or the optimizer refuses its options.
    """
    groups = parameter_groups(model, config.weight_decay, exempt, config.decay_all)
    if not groups:
        raise ConfigurationError("The model has no parameter with requires_grad=True to train.")
    lr = scaled_lr(config, global_batch)
    try:
        if isinstance(config, RepOptimizerConfig):
            return build_rep_optimizer(model, groups, config, lr)
        return create_optimizer_v2(
            groups,
            opt=config.name,
            lr=lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **config.options,
        )
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"Optimizer {config.name!r} refuses its options {config.options}: {error}"
        ) from error


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    config: SchedulerConfig,
    *,
    num_updates: int,
    updates_per_epoch: int,
) -> Scheduler:
    """Build the schedule, counted in updates.

    Args:
        optimizer: What it moves.
        config: What to build.
        num_updates: The updates of the whole run.
        updates_per_epoch: The updates of one epoch.

    Raises:
        ConfigurationError: if warm-up and cool-down leave nothing, or timm refuses an option.
    """
    num_epochs = num_updates / updates_per_epoch
    if config.warmup_epochs + config.cooldown_epochs >= num_epochs:
        raise ConfigurationError(
            f"warmup_epochs + cooldown_epochs must be less than the {num_epochs:g} epochs of the "
            f"run, got {config.warmup_epochs:g} + {config.cooldown_epochs:g}."
        )
    epochs: dict[str, Any] = {  # timm's annotations say int, but fractions work
        "num_epochs": num_epochs - config.cooldown_epochs,
        "warmup_epochs": config.warmup_epochs,
        "cooldown_epochs": config.cooldown_epochs,
    }
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.name,
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
            **epochs,
            **config.options,
        )
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"Schedule {config.name!r} refuses its options {config.options}: {error}"
        ) from error
    return scheduler
