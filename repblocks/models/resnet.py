"""ResNet for images of 224 pixels, with basic blocks or bottlenecks.

Source:
    He et al., Deep Residual Learning, CVPR 2016, table 1, https://arxiv.org/abs/1512.03385

Differences: the 3 x 3 convolution of a bottleneck has the stride, as in torchvision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from repblocks.blocks import create_block
from repblocks.models._network import Network, check_stages
from repblocks.models._rules import Rules
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants
from repblocks.models.resnet_cifar import he_normal_


class ResidualBlock(nn.Module):
    """Two 3 x 3 blocks, or one between pointwise convolutions, and a shortcut.

    Args:
        slot: What stands in the 3 x 3 places.
        in_channels: C_in.
        width: Channels inside.
        stride: Of the first 3 x 3.
        expansion: C_out as a multiple of the channels inside; above 1 it is a bottleneck.
    """

    def __init__(
        self, slot: Slot, in_channels: int, width: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        out_channels = width * expansion
        if expansion == 1:
            first = slot(in_channels, width, 3, stride)
            self.path = nn.Sequential(first, slot(width, width, 3, activation=None))
        else:
            before = create_block("plain", in_channels, width, 1)
            after = create_block("plain", width, out_channels, 1, activation=None)
            self.path = nn.Sequential(before, slot(width, width, 3, stride), after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = create_block(
                "plain", in_channels, out_channels, 1, stride, activation=None
            )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, H / stride, W / stride)``."""
        y: Tensor = self.act(self.path(x) + self.shortcut(x))
        return y


@final
class ResNet(Network):
    """Stages of residual blocks.

    Args:
        depths: Residual blocks of each stage.
        widths: Channels inside the blocks of each stage.
        expansion: Channels of a stage as a multiple of those inside; 4 makes bottlenecks.
        block: A conv block by name for all places of more than one tap; None for ``plain``.
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
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        expansion: int = 1,
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
            blocks: list[nn.Module] = [] if i else [nn.MaxPool2d(3, 2, 1)]
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(ResidualBlock(slot, channels, width, stride, expansion))
                channels = width * expansion
            stages.append(nn.Sequential(*blocks))
        super().__init__(
            slot(in_chans, widths[0], 7, 2),
            stages,
            [width * expansion for width in widths],
            [2 ** (i + 2) for i in range(len(widths))],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )
        if not deploy:
            he_normal_(self)

    def official_rules(self) -> Rules:
        """Return the names of timm, torchvision, OpenMMLab, DBB, ACNet and OREPA."""
        return (
            (r"^backbone\.", ""),
            (r"^(stage0\.)?conv1\.(?!weight$)", "stem."),
            (r"^conv1\.", "stem.branches.conv."),
            (r"^bn1\.", "stem.branches.norm."),
            (r"^stage(\d)\.projection\.", r"stage\1.block0.shortcut."),
            (
                r"^(layer|stage)1\.(block)?(\d+)\.",
                lambda m: f"stages.0.{int(m[3]) + 1}.",
            ),  # after the pooling
            (r"^(layer|stage)(\d)\.(block)?", lambda m: f"stages.{int(m[2]) - 1}."),
            (rf"{_PLACE}conv(\d)\.(?=weight$)", lambda m: f"{_path(m)}.branches.conv."),
            (rf"{_PLACE}bn(\d)\.", lambda m: f"{_path(m)}.branches.norm."),
            (rf"{_PLACE}conv(\d)\.", lambda m: f"{_path(m)}."),
            (r"\.downsample\.0\.", ".shortcut.branches.conv."),
            (r"\.downsample\.1\.", ".shortcut.branches.norm."),
            (r"\.or1x1_reparam\.", ".conv."),
            (r"^(fc|linear)\.", "head.fc."),
        )


_PLACE = r"^(stages\.\d+\.\d+)\."


def _path(found: re.Match[str]) -> str:
    return f"{found[1]}.path.{int(found[2]) - 1}"


VARIANTS: dict[str, dict[str, Any]] = {
    "18": {"depths": (2, 2, 2, 2)},
    "50": {"depths": (3, 4, 6, 3), "expansion": 4},
}

register_variants("resnet", ResNet, VARIANTS, peer="resnet{variant}")
