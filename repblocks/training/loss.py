"""What a network is trained on: labels, mixed labels, a teacher, and scores besides the main ones.

Source:
    Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531
    Touvron et al., DeiT, ICML 2021, section 4 (hard distillation, a head of its own for it),
    https://arxiv.org/abs/2012.12877
    Auxiliary heads: RepVGGplus, https://github.com/DingXiaoH/RepVGG
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torch.nn import functional

from repblocks.blocks import main_and_others
from repblocks.errors import ConfigurationError
from repblocks.training.config import DistillationConfig, MixConfig, TrainingConfig

Outputs = Tensor | Sequence[Tensor]


def build_mixing(config: MixConfig, label_smoothing: float, num_classes: int) -> Mixup | None:
    """Build timm's mixup, or nothing."""
    if not config.is_active:
        return None
    return Mixup(
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        prob=config.prob,
        switch_prob=config.switch_prob,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )


def check_pairs(batch_size: int) -> None:
    """Check that a batch can be mixed.

    Raises:
        ConfigurationError: if an image would be left without another one.
    """
    if batch_size % 2:
        raise ConfigurationError(
            f"Mixup and CutMix blend pairs of images: a batch must be even, got {batch_size}. "
            "Choose an even batch_size, and a train loader with drop_last."
        )


class Loss:
    """The loss of one batch.

    Without a teacher all scores learn the labels, others than the main ones with a smaller weight.
    With one, the scores of the head that is made for it learn from it, the first of the others, or
    the main scores themselves.

    Args:
        config: Says which.
        is_distilled: Whether the first of the others are the scores of such a head.
    """

    def __init__(self, config: TrainingConfig, *, is_distilled: bool = False) -> None:
        self.is_distilled = is_distilled
        self.auxiliary_weight = config.auxiliary_weight
        self.distillation = config.distillation
        self.of_labels = _of_labels(config)

    def __call__(self, outputs: Outputs, targets: Tensor, taught: Tensor | None) -> Tensor:
        """Give the loss of one batch.

        Args:
            outputs: Of the network: its scores, or a list that starts with the main ones.
            targets: Labels ``(N,)`` or their mixtures ``(N, num_classes)``.
            taught: The teacher's scores, if there is one.

        Raises:
            ConfigurationError: if the outputs are anything else.
        """
        main, others = main_and_others(outputs)
        loss = self.of_labels(main, targets)
        if taught is not None:
            pupil, *others = others if self.is_distilled else [main, *others]
            share = self.distillation.alpha
            loss = (1 - share) * loss + share * distillation_loss(pupil, taught, self.distillation)
        for scores in others:
            loss = loss + self.auxiliary_weight * self.of_labels(scores, targets)
        return loss


def _of_labels(config: TrainingConfig) -> Callable[[Tensor, Tensor], Tensor]:
    if config.loss == "binary_cross_entropy":
        return BinaryCrossEntropy(config.label_smoothing)
    if config.mix.is_active:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(config.label_smoothing)


def distillation_loss(scores: Tensor, taught: Tensor, config: DistillationConfig) -> Tensor:
    """Give how far scores are from a teacher's, the mean over the images.

    Hard: the cross entropy with the teacher's first class. Soft: the Kullback-Leibler divergence
    of both distributions at a temperature, times its square.

    Args:
        scores: ``(N, num_classes)``.
        taught: The same of the teacher.
        config: Says which.
    """
    if config.kind == "hard":
        return functional.cross_entropy(scores, taught.argmax(1))
    own, other = (functional.log_softmax(s / config.temperature, 1) for s in (scores, taught))
    divergence = functional.kl_div(own, other, reduction="batchmean", log_target=True)
    return divergence * config.temperature**2
