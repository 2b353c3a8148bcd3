"""ResNet for images of 32 pixels: three stages of basic blocks.

Source:
    He et al., Deep Residual Learning, CVPR 2016, section 4.2, https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.nn import functional

from repblocks.algebra import is_batch_norm
from repblocks.blocks import ConvBlock, create_block
from repblocks.branches import check_choice
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._rules import Rules
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


class BasicBlock(nn.Module):
    """Two 3 x 3 blocks and a shortcut.

    Args:
        slot: What stands in the 3 x 3 places.
        in_channels: C_in.
        channels: C.
        stride: Of the first 3 x 3 and of the shortcut.
        projects: Whether a shortcut to other positions or channels is a pointwise convolution;
            else it subsamples, and pads channels with zeros.
    """

    def __init__(
        self, slot: Slot, in_channels: int, channels: int, stride: int, projects: bool
    ) -> None:
        super().__init__()
        self.conv1 = slot(in_channels, channels, 3, stride)
        self.conv2 = slot(channels, channels, 3, activation=None)
        self.act = nn.ReLU()
        self.stride = stride
        self.missing = channels - in_channels
        self.projection: nn.Module | None = None
        if projects and (stride > 1 or self.missing):
            self.projection = create_block(
                "plain", in_channels, channels, 1, stride, activation=None
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        y: Tensor = self.act(self.conv2(self.conv1(x)) + self._shortcut(x))
        return y

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            projected: Tensor = self.projection(x)
            return projected
        before = self.missing // 2
        padding = (0, 0, 0, 0, before, self.missing - before)
        return functional.pad(x[:, :, :: self.stride, :: self.stride], padding)


@final
class ResNetCifar(Network):
    """Stages of basic blocks.

    Args:
        depths: Basic blocks of each stage.
        widths: Channels of each stage.
        stem_stride: Stride of the stem.
        shortcut: What leads to more channels: ``"pad"`` with zeros (option A of the paper), or a
            ``"projection"`` (option B), as in ACNet's networks.
        block: A conv block by name for all 3 x 3 places; None for ``plain``.
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
        widths: Sequence[int] = (16, 32, 64),
        *,
        stem_stride: int = 1,
        shortcut: str = "pad",
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, widths=widths)
        check_choice("shortcut", shortcut, ("pad", "projection"))
        slot = Slot.create(block, block_options, "plain")
        stages, channels = [], widths[0]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(BasicBlock(slot, channels, width, stride, shortcut == "projection"))
                channels = width
            stages.append(nn.Sequential(*blocks))
        super().__init__(
            slot(in_chans, widths[0], 3, stem_stride),
            stages,
            widths,
            doubled(stem_stride, len(widths)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )
        if not deploy:
            he_normal_(self)

    def official_rules(self) -> Rules:
        """Return the names of ACNet, and what they are."""
        return (
            (r"^stage1\.conv1\.", "stem."),
            (r"^stage(\d)\.projection\.", r"stage\1.block0.projection."),
            (r"^stage(\d)\.block(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}."),
            (r"^linear\.", "head.fc."),
        )


def he_normal_(model: nn.Module) -> None:
    """Draw the convolutions as the paper does, but for those that a block starts in its own way.

    These are zeros, and the factors of one kernel, between which no BatchNorm makes up for their
    size.
    """
    own: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, ConvBlock) and _is_one_kernel(module):
            own.update(module.modules())
        if isinstance(module, nn.Conv2d) and module not in own and not _is_zero(module.weight):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _is_zero(weight: Tensor) -> bool:
    return not weight.is_meta and not weight.any()


def _is_one_kernel(block: ConvBlock) -> bool:
    """Tell whether no BatchNorm stands among the convolutions of a block, but after all of them."""
    parts = dict(block.named_modules())
    return "branches.kernel" in parts or not any(map(is_batch_norm, parts.values()))


VARIANTS: dict[str, dict[str, Any]] = {
    "8": {"depths": (1, 1, 1)},
    "20": {"depths": (3, 3, 3)},
    "56": {"depths": (9, 9, 9)},
}

register_variants("resnet_cifar", ResNetCifar, VARIANTS, {"8": 32, "20": 32, "56": 32})
