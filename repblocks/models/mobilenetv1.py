"""MobileNet: depthwise 3 x 3 and pointwise convolutions in turn.

Source:
    Howard et al., MobileNets, 2017, table 1, https://arxiv.org/abs/1704.04861

Activations end at 6, as in the reference code and in timm; DBB's MobileNet has plain ReLUs,
``activation="relu"``. Initial weights are torch's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn

from repblocks.blocks import create_block
from repblocks.errors import CheckpointError
from repblocks.models._network import Network, check_stages
from repblocks.models._rules import Rules
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class MobileNetV1(Network):
    """Pairs of a depthwise and a pointwise block, the first of each later stage with stride 2.

    Args:
        depths: Pairs of each stage.
        widths: Channels of each stage.
        stem_width: Channels of the stem.
        block: A conv block by name for the stem and the depthwise places; None for ``plain``,
            which the pointwise ones are in any case.
        block_options: Options of the block.
        activation: That of all blocks.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        stem_width: int = 32,
        *,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        activation: str = "relu6",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, widths=widths)
        slot, act = Slot.create(block, block_options, "plain"), {"activation": activation}
        self._activation = activation
        stages, channels = [], stem_width
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            pairs = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                pairs.append(slot(channels, channels, 3, stride, groups=channels, **act))
                pairs.append(create_block("plain", channels, width, 1, **act))
                channels = width
            stages.append(nn.Sequential(*pairs))
        super().__init__(
            slot(in_chans, stem_width, 3, 2, **act),
            stages,
            widths,
            [2 ** (i + 1) for i in range(len(widths))],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )

    def official_rules(self) -> Rules:
        """Return the names of timm, of DBB and of ACNet, and what they are."""
        firsts = [
            (i, j)
            for i, stage in enumerate(self.stages)
            for j in range(len([*stage.children()]) // 2)
        ]

        def place(found: re.Match[str]) -> str:
            self._check_activation("relu", "DBB's and ACNet's MobileNet")
            i, j = firsts[int(found[1])]
            return f"stages.{i}.{2 * j + (found[2] == 'pointwise')}."

        def of_timm(_found: re.Match[str]) -> str:
            self._check_activation("relu6", "timm's MobileNet")
            return "stem.branches.conv."

        return (
            (r"^conv_stem\.", of_timm),
            (r"^bn1\.", "stem.branches.norm."),
            (r"^blocks\.(\d+)\.(\d+)\.(conv_dw|bn1)\.", lambda m: _pair(m, 0)),
            (r"^blocks\.(\d+)\.(\d+)\.(conv_pw|bn2)\.", lambda m: _pair(m, 1)),
            (r"^conv1\.", "stem."),
            (r"^stem\.(\d+)\.(depthwise|pointwise)\.", place),
            (r"^(classifier|linear)\.", "head.fc."),
        )

    def _check_activation(self, needed: str, whose: str) -> None:
        if self._activation != needed:
            raise CheckpointError(
                f"Weights of {whose} are for the activation {needed!r}, and that of this one is "
                f"{self._activation!r}: build it with activation={needed!r}."
            )


def _pair(found: re.Match[str], which: int) -> str:
    part = "norm" if found[3].startswith("bn") else "conv"
    return f"stages.{found[1]}.{2 * int(found[2]) + which}.branches.{part}."


VARIANTS: dict[str, dict[str, Any]] = {
    "100": {"depths": (1, 2, 2, 6, 2), "widths": (64, 128, 256, 512, 1024)},
}

register_variants("mobilenetv1", MobileNetV1, VARIANTS)
