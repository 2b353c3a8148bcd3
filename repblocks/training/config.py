"""What a training run can be told, as plain frozen dataclasses that check themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from repblocks.errors import ConfigurationError, UnknownNameError
from repblocks.execution import ROUNDED

SCHEDULES = ("cosine", "constant", "multistep", "poly", "rsqrt", "step", "tanh", "wsd")

LOSSES = ("cross_entropy", "binary_cross_entropy")
REP_OPTIMIZERS = ("rep_sgd", "rep_adamw")


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


def _is_none_or(value: float | None, least: float) -> bool:
    return value is None or value >= least


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
    # Whether it acts on biases and 1-d parameters, too, as in older recipes.
    decay_all: bool = False
    # What the weight decay falls to, along half a cosine over the run; None: it stays.
    weight_decay_end: float | None = None
    # The momentum, for optimizers that have one.
    momentum: float = 0.9
    # More arguments of the optimizer, for example {"betas": [0.9, 0.99]}.
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from timm.optim import list_optimizers

        self._check_name([str(name) for name in list_optimizers()])
        _require(
            self,
            lr=(self.lr > 0, "more than 0"),
            base_batch_size=(self.base_batch_size >= 1, "at least 1"),
            weight_decay=(self.weight_decay >= 0, "at least 0"),
            weight_decay_end=(_is_none_or(self.weight_decay_end, 0), "None or at least 0"),
            momentum=(0 <= self.momentum < 1, "in [0, 1)"),
        )

    def _check_name(self, known: Sequence[str]) -> None:
        if self.name in REP_OPTIMIZERS:
            raise ConfigurationError(
                f"{self.name} needs the constants of RepOptimizerConfig: optimizer={self.name}."
            )
        if self.name.removeprefix("lookahead_") not in known:
            raise UnknownNameError("optimizer", self.name, known)


@dataclass(frozen=True)
class RepOptimizerConfig(OptimizerConfig):
    """An optimizer that trains plain blocks as if they had the branches of RepVGG.

    Each of these branches has a constant factor for each channel. They are those of a
    hyper-search, or the same ones everywhere.
    """

    # "rep_sgd", with Nesterov momentum unless the options say otherwise, or "rep_adamw".
    name: str = "rep_sgd"
    # The checkpoint of the hyper-search: the same network of block=repvgg with a block.scale.
    scales_from: str | None = None
    # Without it: the factor of the k x k branches, of the 1 x 1 branches, and of the identity.
    kernel_scale: float = 1.0
    pointwise_scale: float = 1.0
    identity_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        scales = {
            name: (getattr(self, name) > 0, "more than 0")
            for name in ("kernel_scale", "pointwise_scale", "identity_scale")
        }
        _require(self, **scales)

    def _check_name(self, known: Sequence[str]) -> None:
        del known  # timm's
        if self.name not in REP_OPTIMIZERS:
            raise UnknownNameError("optimizer", self.name, REP_OPTIMIZERS)


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
class DistillationConfig:
    """Learn from the scores of another network, too."""

    # A network of timm with its weights, or a checkpoint of train.py (*.ckpt); None: no teacher.
    teacher: str | None = None
    # A local file of weights for a network of timm, in the place of those that timm downloads.
    weights: str | None = None
    # "hard": learn its first class; "soft": learn all its scores.
    kind: str = "hard"
    # The share of the teacher in the loss.
    alpha: float = 0.5
    # Divides the scores in the soft kind.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _require(
            self,
            kind=(self.kind in ("hard", "soft"), "hard or soft"),
            alpha=(0 < self.alpha <= 1, "in (0, 1]"),
            temperature=(self.temperature > 0, "more than 0"),
        )


@dataclass(frozen=True)
class ResolutionConfig:
    """Train on smaller images first; validation has the full size throughout."""

    # Height and width that training images are resized to, one after the other; empty: as they are.
    sizes: list[int] = field(default_factory=list)
    # The epochs from which these sizes hold, as many.
    epochs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        numbers = [*self.sizes, *self.epochs]
        are_whole = all(type(number) is int and number >= 0 for number in numbers)
        _require(
            self,
            sizes=(are_whole and 0 not in self.sizes, "whole numbers of at least 1"),
            epochs=(
                are_whole
                and len(self.epochs) == len(self.sizes)
                and list(self.epochs) == sorted(set(self.epochs)),
                f"{len(self.sizes)} rising whole numbers, one for each size",
            ),
        )

    def at(self, epoch: int) -> int | None:
        """Give the height and width in an epoch, counted from 0; None for the full size."""
        reached = [
            size for size, start in zip(self.sizes, self.epochs, strict=True) if epoch >= start
        ]
        return reached[-1] if reached else None


@dataclass(frozen=True)
class TrainingConfig:
    """What happens in training, apart from the loop itself, which is Lightning's Trainer."""

    # The seed of everything random in training.
    seed: int = 0
    # The share of each label that is spread over all classes.
    label_smoothing: float = 0.0
    # "cross_entropy", or "binary_cross_entropy" of each class.
    loss: str = "cross_entropy"
    # The weight of the loss of scores other than the main ones, of auxiliary heads.
    auxiliary_weight: float = 0.1
    # Keep an average of the weights with this decay, and validate and deploy it; None: do not.
    ema_decay: float | None = None
    # The average is faster in the first updates, so that short runs can use it too.
    ema_warmup: bool = True
    # Keep images and weights in the channels-last layout: faster on most GPUs.
    channels_last: bool = False
    # Compile the network with torch.compile.
    compile: bool = False
    # Replay the passes of the network from CUDA graphs, on one GPU.
    cuda_graph: bool = False
    # How blocks compute their branches: "auto", "branchwise", "merged", "weight_space" or "int8".
    execution: str = "auto"
    # Normalise with the running statistics, and leave them as they are.
    freeze_norms: bool = False
    # The share of the updates in which blocks that want it (vanilla) are annealed; what follows
    # trains the function that is deployed.
    anneal_share: float = 0.5
    # Decay the equivalent kernel of each block by this, and not the weights of its branches.
    kernel_decay: float = 0.0
    # Clip the gradient of each output to this share of its weights (Brock et al., NFNets, 2021,
    # arXiv:2102.06171), but for the classifier; None: do not.
    adaptive_clip: float | None = None
    # How often an epoch shows each of its images, differently augmented; it has as many fewer.
    repeated_augmentation: int = 1
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
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)

    def __post_init__(self) -> None:
        every, keep = self.checkpoint_every_n_steps, self.keep_step_checkpoints
        _require(
            self,
            seed=(0 <= self.seed < 2**32, "in [0, 2**32)"),
            label_smoothing=(0 <= self.label_smoothing < 1, "in [0, 1)"),
            ema_decay=(self.ema_decay is None or 0 < self.ema_decay < 1, "None or in (0, 1)"),
            freeze_norms=(
                self.freeze_norms or self.execution != ROUNDED,
                f"true with execution={ROUNDED}, where kernels do not depend on the batch",
            ),
            loss=(self.loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            auxiliary_weight=(self.auxiliary_weight >= 0, "at least 0"),
            kernel_decay=(self.kernel_decay >= 0, "at least 0"),
            adaptive_clip=(
                self.adaptive_clip is None or self.adaptive_clip > 0,
                "None or more than 0",
            ),
            repeated_augmentation=(self.repeated_augmentation >= 1, "at least 1"),
            anneal_share=(0 < self.anneal_share <= 1, "in (0, 1]"),
            non_finite_patience=(self.non_finite_patience >= 1, "at least 1"),
            checkpoint_every_n_steps=(every is None or every >= 1, "None or at least 1"),
            keep_step_checkpoints=(keep == -1 or keep >= 1, "-1 or at least 1"),
        )
