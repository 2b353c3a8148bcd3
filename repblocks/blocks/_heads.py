"""Heads: classifiers that become one linear layer, and classifiers that are for training alone.

What a network returns: in evaluation mode its scores ``(N, num_classes)``. In training mode the
same, or a list ``[main, *others]`` of scores of that shape, which :func:`main_and_others` takes
apart: the loss of the labels is that of the main ones, and what the others are trained on, a
teacher's scores or the labels with a smaller weight, is the training's to choose. A network with an
averaged head returns what the head returns, one with auxiliary heads
``[scores, *auxiliary(features)]``; the list is never there in evaluation mode, nor after
``switch_to_deploy``.

Shapes: N images, F features, C channels.

Source:
    Graham et al., LeViT, ICCV 2021, section 4.2 (normalised and averaged heads),
    https://arxiv.org/abs/2104.01136
    Wang et al., RepViT, CVPR 2024, section 3.2, https://arxiv.org/abs/2307.09283
    RepVGGplus (auxiliary heads): https://github.com/DingXiaoH/RepVGG

Differences: an averaged head folds whatever the network was trained with; auxiliary heads are not
called in evaluation mode, and deployed they are gone, where the official code fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import final

import torch
from torch import Tensor, nn

from repblocks.algebra.kernel import ConvKernel
from repblocks.algebra.special import pointwise_to_linear
from repblocks.blocks._base import RepBlock, deployed_conv, kernel_of
from repblocks.blocks._registry import create_block
from repblocks.branches import check_count
from repblocks.errors import ConfigurationError


def main_and_others(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Take apart what a network returns: its scores, and those of other heads in training.

    Args:
        outputs: A tensor, or a list or tuple of tensors of one shape.

    Raises:
        ConfigurationError: if it is anything else.
    """
    found = [outputs] if isinstance(outputs, Tensor) else outputs
    is_list = isinstance(found, list | tuple) and len(found) > 0
    if not is_list or not all(isinstance(scores, Tensor) for scores in found):
        raise ConfigurationError(
            "A classifier must return scores (N, num_classes), or in training a list of them that "
            f"starts with the main ones, got {type(outputs).__name__}."
        )
    main, *others = found
    wrong = [tuple(scores.shape) for scores in others if scores.shape != main.shape]
    if wrong:
        raise ConfigurationError(
            f"All scores of a classifier must have the shape of the first, {tuple(main.shape)}, "
            f"got {wrong[0]}."
        )
    return main, others


@final
class NormLinear(RepBlock):
    """BatchNorm of the features and a linear layer; one linear layer when deployed.

    Args:
        in_features: F.
        num_classes: Scores.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        check_count("in_features", in_features)
        check_count("num_classes", num_classes)
        self.norm: nn.Module | None = nn.BatchNorm1d(in_features)
        self.linear = nn.Linear(in_features, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    @property
    def is_deployed(self) -> bool:
        """Whether the linear layer has taken in the BatchNorm."""
        return self.norm is None

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(N, F)`` to scores ``(N, num_classes)``."""
        scores: Tensor = self.linear(x if self.norm is None else self.norm(x))
        return scores

    def equivalent_kernel(self, dtype: torch.dtype | None = None) -> ConvKernel:
        """Return the same as a pointwise kernel.

        Args:
            dtype: What to compute in, differentiably; the dtype of the weights by default.

        Raises:
            NotFoldable: if the BatchNorm is in training mode or has no running statistics.
        """
        steps = [self.linear] if self.norm is None else [self.norm, self.linear]
        return kernel_of(nn.Sequential(*steps), self.linear.in_features, 0, dtype)

    def _fold(self) -> Mapping[str, nn.Module | None]:
        conv = deployed_conv(self.equivalent_kernel(torch.float64), self)
        return {"linear": pointwise_to_linear(conv), "norm": None}


@final
class AveragedHeads(RepBlock):
    """Classifiers of the same features, one of them taught otherwise, whose average is deployed.

    In training mode it returns the list of their scores, in evaluation mode their average.

    Args:
        in_features: F.
        num_classes: Scores.
        num_heads: Classifiers, each a :class:`NormLinear`.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(self, in_features: int, num_classes: int, *, num_heads: int = 2) -> None:
        super().__init__()
        check_count("num_heads", num_heads)
        heads = [NormLinear(in_features, num_classes) for _ in range(num_heads)]
        self.heads: nn.ModuleList | None = nn.ModuleList(heads)
        self.linear: nn.Module | None = None

    @property
    def is_deployed(self) -> bool:
        """Whether the classifiers have become one."""
        return self.heads is None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map features ``(N, F)`` to scores ``(N, num_classes)``, a list of them in training."""
        if self.heads is None:
            average: Tensor = self.linear(x)  # type: ignore[misc] # it is there
            return average
        scores = [head(x) for head in self.heads]
        return scores if self.training else torch.stack(scores).mean(0)

    def _fold(self) -> Mapping[str, nn.Module | None]:
        heads: Iterable[NormLinear] = self.heads  # type: ignore[assignment] # they are these
        kernels = [head.equivalent_kernel(torch.float64) for head in heads]
        total = reduce(add, kernels)
        share = total.weight.new_full((total.out_channels, 1, 1), 1 / len(kernels))
        average = ConvKernel(share, groups=total.out_channels) @ total
        return {"linear": pointwise_to_linear(deployed_conv(average, self)), "heads": None}


@final
class AuxiliaryHeads(RepBlock):
    """Classifiers of features inside a network that help to train it, and vanish when deployed.

    Each is a 3 x 3 convolution of stride 2 with BatchNorm and ReLU, the mean, and a linear layer.
    RepVGGplus adds a tenth of the loss of each.

    Args:
        channels: C of each of the features.
        num_classes: Scores.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.heads: nn.ModuleList | None = nn.ModuleList(
            nn.Sequential(
                create_block("plain", width, width, 3, stride=2),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(width, num_classes),
            )
            for width in channels
        )

    @property
    def is_deployed(self) -> bool:
        """Whether the classifiers are gone."""
        return self.heads is None

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map features ``(N, C, H, W)`` to the scores of each; to none outside of training."""
        if self.heads is None or not self.training:
            return []
        return [head(x) for head, x in zip(self.heads, features, strict=True)]

    def _fold(self) -> Mapping[str, nn.Module | None]:
        return {"heads": None}
