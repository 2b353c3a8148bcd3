"""VGG with batch normalisation: 3 x 3 blocks, and a maximum over 2 x 2 after each stage.

Source:
    Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015, table 1,
    https://arxiv.org/abs/1409.1556

Differences: the mean and one linear layer in the place of three linear layers, as all networks here
have them and as those for CIFAR do; each convolution has a BatchNorm. Initial weights are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from repblocks.models._network import Network, check_stages
from repblocks.models._rules import Rules, without_biases
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class VGG(Network):
    """Stages of 3 x 3 blocks, each with a pooling at its end; the first block is the stem.

    Args:
        depths: Blocks of each stage, with the stem among those of the first.
        widths: Channels of each stage.
        block: A conv block by name for all places; None for ``plain``.
        block_options: Options of the block.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        *,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, widths=widths)
        slot = Slot.create(block, block_options, "plain")
        stages, channels = [], widths[0]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for _ in range(depth - 1 if i == 0 else depth):
                blocks.append(slot(channels, width, 3))
                channels = width
            stages.append(nn.Sequential(*blocks, nn.MaxPool2d(2)))
        super().__init__(
            slot(in_chans, widths[0], 3),
            stages,
            widths,
            [2 ** (i + 1) for i in range(len(widths))],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )

    def official_rules(self) -> Rules:
        """Return the names of torchvision, timm, ACNet and networks for CIFAR, and what they are.

        The first two have three linear layers where this network has one, ACNet has two: without
        classes it takes their features, and leaves any classifier.
        """
        flat, blocks = _layers("stem"), ["stem"]
        for i, stage in enumerate(self.stages):
            for j in range(len(list(stage.children())) - 1):
                blocks.append(f"stages.{i}.{j}")
                flat += _layers(blocks[-1])
            flat.append("pooling")
        classifier = r"^(classifier|pre_logits|head\.fc|linear[12])\."
        return (
            (r"^features\.(\d+)\.", lambda m: f"{flat[int(m[1])]}."),
            (r"^stem\.conv(\d+)\.", lambda m: f"{blocks[int(m[1]) - 1]}."),
            (r"^classifier\.(?=(weight|bias)$)", "head.fc."),
            *(() if self.num_classes else ((classifier, None),)),
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with the biases of the convolutions in the norms."""
        return without_biases(state)


def _layers(block: str) -> list[str]:
    return [f"{block}.branches.conv", f"{block}.branches.norm", f"{block}.tail.act"]


VARIANTS: dict[str, dict[str, Any]] = {"16": {"depths": (2, 2, 3, 3, 3)}}

register_variants("vgg", VGG, VARIANTS)
