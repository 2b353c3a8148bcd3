"""What a training run can be told, as plain frozen dataclasses that check themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from repblocks.errors import ConfigurationError, UnknownNameError

SCHEDULES = ("cosine", "constant", "multistep", "poly", "rsqrt", "step", "tanh", "wsd")


def _require(owner: object, **rules: tuple[bool, str]) -> None:
    """Raise one error that names every field of ``owner`` that breaks its rule.

    Args:
        owner: A dataclass instance.
        **rules: For each field, whether it is right, and what it must be.

    Raises:
        ConfigurationError: if a rule is broken.
    """
    wrong = [
        f"{name} must be {what}, got {getattr(owner, name)!r}"
        for name, (is_right, what) in rules.items()
        if not is_right
    ]
    if wrong:
        raise ConfigurationError(f"{type(owner).__name__}: {'; '.join(wrong)}.")


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer of timm."""

    # timm's name. "sgd" is SGD with Nesterov momentum, "momentum" is SGD without Nesterov.
    name: str = "sgd"
    # The learning rate for a global batch of base_batch_size; it is scaled by the real one.
    lr: float = 0.1
    # The global batch (batch size x processes x accumulated batches) that lr is meant for.
    base_batch_size: int = 256
    # The weight decay, not for biases and 1-d parameters unless a block asks for it.
    weight_decay: float = 1e-4
    # The momentum, for optimizers that have one.
    momentum: float = 0.9
    # More arguments of the optimizer, for example {"betas": [0.9, 0.99]}.
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from timm.optim import list_optimizers

        known = [str(name) for name in list_optimizers()]
        if self.name.removeprefix("lookahead_") not in known:
            raise UnknownNameError("optimizer", self.name, known)
        _require(
            self,
            lr=(self.lr > 0, "more than 0"),
            base_batch_size=(self.base_batch_size >= 1, "at least 1"),
            weight_decay=(self.weight_decay >= 0, "at least 0"),
            momentum=(0 <= self.momentum < 1, "in [0, 1)"),
        )


@dataclass(frozen=True)
class SchedulerConfig:
    """A learning rate schedule of timm, moved on after every update of the weights."""

    # timm's name; "constant" keeps the learning rate after the warm-up.
    name: str = "cosine"
    # Epochs (also fractions) in which the learning rate rises in a line from warmup_lr.
    warmup_epochs: float = 0.0
    # The learning rate of the first update, if there is a warm-up. Not scaled by the batch.
    warmup_lr: float = 1e-6
    # The learning rate that a falling schedule ends at. Not scaled by the batch.
    min_lr: float = 0.0
    # Epochs at the end that stay at min_lr; the schedule is over before them.
    cooldown_epochs: float = 0.0
    # More arguments of timm.scheduler.create_scheduler_v2, for example {"decay_rate": 0.1}.
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise UnknownNameError("schedule", self.name, SCHEDULES)
        _require(
            self,
            warmup_epochs=(self.warmup_epochs >= 0, "at least 0"),
            warmup_lr=(self.warmup_lr >= 0, "at least 0"),
            min_lr=(self.min_lr >= 0, "at least 0"),
            cooldown_epochs=(self.cooldown_epochs >= 0, "at least 0"),
        )


@dataclass(frozen=True)
class MixConfig:
    """Mixup and CutMix: blend each image of a batch, and its label, with another one."""

    # Mixup's Beta(alpha, alpha) of the share of the first image; 0 is no mixup.
    mixup_alpha: float = 0.0
    # CutMix's Beta(alpha, alpha) of the area of the first image; 0 is no CutMix.
    cutmix_alpha: float = 0.0
    # How often a batch is mixed at all.
    prob: float = 1.0
    # How often it is CutMix, where both are on.
    switch_prob: float = 0.5

    def __post_init__(self) -> None:
        _require(
            self,
            mixup_alpha=(self.mixup_alpha >= 0, "at least 0"),
            cutmix_alpha=(self.cutmix_alpha >= 0, "at least 0"),
            prob=(0 <= self.prob <= 1, "in [0, 1]"),
            switch_prob=(0 <= self.switch_prob <= 1, "in [0, 1]"),
        )

    @property
    def is_active(self) -> bool:
        """Whether any batch is ever mixed."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(frozen=True)
class TrainingConfig:
    """What happens in training, apart from the loop itself, which is Lightning's Trainer."""

    # The seed of everything random in training.
    seed: int = 0
    # The share of each label that is spread over all classes.
    label_smoothing: float = 0.0
    # Keep an average of the weights with this decay, and validate and deploy it; None: do not.
    # The average is faster in the first updates, so that short runs can use it too.
    ema_decay: float | None = None
    # Keep images and weights in the channels-last layout: faster on most GPUs.
    channels_last: bool = False
    # Compile the network with torch.compile.
    compile: bool = False
    # How blocks compute their branches: "auto", "branchwise", "merged" or "weight_space".
    execution: str = "auto"
    # The share of the updates in which blocks that want it (vanilla) are annealed; what follows
    # trains the function that is deployed.
    anneal_share: float = 0.5
    # Stop after so many updates in a row whose loss is not finite; single ones are left out.
    non_finite_patience: int = 3
    # Write a checkpoint every so many updates, besides those at the end of an epoch; None: do not.
    checkpoint_every_n_steps: int | None = None
    # How many of those to keep, the newest; -1 keeps all.
    keep_step_checkpoints: int = 2
    # Also write logs for TensorBoard, beside metrics.csv.
    tensorboard: bool = True
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    mix: MixConfig = field(default_factory=MixConfig)

    def __post_init__(self) -> None:
        every, keep = self.checkpoint_every_n_steps, self.keep_step_checkpoints
        _require(
            self,
            seed=(0 <= self.seed < 2**32, "in [0, 2**32)"),
            label_smoothing=(0 <= self.label_smoothing < 1, "in [0, 1)"),
            ema_decay=(self.ema_decay is None or 0 < self.ema_decay < 1, "None or in (0, 1)"),
            anneal_share=(0 < self.anneal_share <= 1, "in (0, 1]"),
            non_finite_patience=(self.non_finite_patience >= 1, "at least 1"),
            checkpoint_every_n_steps=(every is None or every >= 1, "None or at least 1"),
            keep_step_checkpoints=(keep == -1 or keep >= 1, "-1 or at least 1"),
        )
