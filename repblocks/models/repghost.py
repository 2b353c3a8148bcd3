"""RepGhostNet: bottlenecks of two RepGhost modules, with a depthwise layer where there is a stride.

Source:
    Chen et al., RepGhost: A Hardware-Efficient Ghost Module via Re-parameterization, 2022,
    section 3 and table 2, https://arxiv.org/abs/2211.06088
    Official code: https://github.com/ChengpengChen/RepGhost

Differences: all BatchNorms fold, those of the pointwise convolutions and of the shortcuts, too;
features are those of the ends of the stages. Initial weights are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

from timm.layers import make_divisible
from torch import Tensor, nn

from repblocks.blocks._stage import Affine, StageBlock, pointwise
from repblocks.blocks._tail import SqueezeExcite
from repblocks.blocks.rep_ghost import cheap_operation
from repblocks.errors import ConfigurationError
from repblocks.models._heads import PooledHead
from repblocks.models._mixer import stage
from repblocks.models._network import Network, doubled
from repblocks.models._rules import Rules
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants

#: Of each layer of each stage: taps, hidden channels, channels, whether there is
#: squeeze-and-excitation; for a width of 1.
STAGES = (
    ((3, 8, 16, False),),
    ((3, 24, 24, False), (3, 36, 24, False)),
    ((5, 36, 40, True), (5, 60, 40, True)),
    (
        (3, 120, 80, False),
        (3, 100, 80, False),
        (3, 120, 80, False),
        (3, 120, 80, False),
        (3, 240, 112, True),
        (3, 336, 112, True),
    ),
    (
        (5, 336, 160, True),
        (5, 480, 160, False),
        (5, 480, 160, True),
        (5, 480, 160, False),
        (5, 480, 160, True),
    ),
)


@final
class RepGhostBottleneck(StageBlock):
    """Two modules, a strided depthwise layer and squeeze-and-excitation between them, a shortcut.

    Args:
        slot: For the depthwise layers of a stride.
        in_channels: C_in.
        hidden: Channels between the modules.
        out_channels: C_out.
        kernel_size: Taps of the strided layer and of the shortcut.
        stride: On each axis.
        se: Whether there is squeeze-and-excitation, of a quarter of the channels.
    """

    def __init__(
        self,
        slot: Slot,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        se: bool,
    ) -> None:
        super().__init__()

        def depthwise(channels: int) -> nn.Module:
            return slot(channels, channels, kernel_size, stride, groups=channels, activation=None)

        self.pw1: nn.Module = Affine(in_channels, 2, **pointwise(in_channels, hidden, 2))
        self.act1 = nn.ReLU()
        self.cheap1: nn.Module = cheap_operation(hidden)
        self.act2 = nn.ReLU()
        self.depthwise = depthwise(hidden) if stride > 1 else nn.Identity()
        squeezed = make_divisible(hidden * 0.25, 4)
        gate = "hardsigmoid"
        self.se = SqueezeExcite(hidden, squeezed, 2, gate) if se else nn.Identity()
        self.pw2: nn.Module = Affine(hidden, 2, **pointwise(hidden, out_channels, 2))
        self.cheap2: nn.Module = cheap_operation(out_channels)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels or stride > 1:
            pw = Affine(in_channels, 2, **pointwise(in_channels, out_channels, 2))
            self.shortcut = stage(depthwise=depthwise(in_channels), pointwise=pw)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, H / stride, W / stride)``."""
        y = self.act2(self.cheap1(self.act1(self.pw1(x))))
        y = self.cheap2(self.pw2(self.se(self.depthwise(y))))
        shortcut: Tensor = self.shortcut(x)
        return shortcut + y


@final
class RepGhostNet(Network):
    """Five stages of bottlenecks, the first layer of each with stride 2 but for the first stage.

    Args:
        width: Channels as a multiple of those of the paper's table.
        depths: Layers of each stage, at most those of the table; fewer stages if wished.
        block: A conv block by name for the stem, the depthwise layers with a stride and in the
            shortcuts, and the last layer; None for ``plain``.
        block_options: Options of the block.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form.

    Raises:
        ConfigurationError: if a stage has no layer, or more than the table has.
    """

    def __init__(
        self,
        width: float,
        *,
        depths: Sequence[int] = (1, 2, 2, 6, 5),
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
        deploy: bool = False,
    ) -> None:
        limits = [len(layers) for layers in STAGES]
        fits = [1 <= depth <= most for depth, most in zip(depths, limits, strict=False)]
        if not depths or len(depths) > len(limits) or not all(fits):
            raise ConfigurationError(
                f"depths must be from 1 to {limits}, of one stage at least, got {list(depths)}."
            )
        slot = Slot.create(block, block_options, "plain")
        scaled = partial(_scaled, width)
        stem_width = channels = scaled(16)
        stages, widths = [], []
        for i, depth in enumerate(depths):
            layers: list[nn.Module] = []
            for j, (kernel_size, hidden, out, se) in enumerate(STAGES[i][:depth]):
                stride = 2 if i > 0 and j == 0 else 1
                sizes = (channels, scaled(hidden), scaled(out))
                layers.append(RepGhostBottleneck(slot, *sizes, kernel_size, stride, se))
                channels = scaled(out)
            stages.append(nn.Sequential(*layers))
            widths.append(channels)
        last = scaled(2 * STAGES[-1][-1][1])
        super().__init__(
            slot(in_chans, stem_width, 3, 2, activation="relu"),
            stages,
            widths,
            doubled(2, len(widths)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
            final=slot(channels, last, 1, activation="relu"),
            head_channels=last,
            head=partial(PooledHead, hidden=1280),
            head_size=1280,
        )

    def official_rules(self) -> Rules:
        """Return the names of the official code and of timm, and what they are."""
        # They have a list of the layers with a stride, and of those between two of them.
        places: dict[tuple[int, int], str] = {}
        count = 0
        for i, layers in enumerate(self.stages):
            for j in range(len(list(layers.children()))):
                starts = i > 0 and j == 0
                places[(count, 0) if starts else (count + (i > 0), j - (i > 0))] = f"stages.{i}.{j}"
            count += 2 if i > 0 else 1
        last = max(place for place, _ in places) + 1
        return (
            (rf"^blocks\.{last}\.0\.conv\.", "final.branches.conv."),
            (rf"^blocks\.{last}\.0\.bn1\.", "final.branches.norm."),
            (r"^blocks\.(\d+)\.(\d+)\.", lambda m: f"{places[int(m[1]), int(m[2])]}."),
            (r"^conv_stem\.", "stem.branches.conv."),
            (r"^bn1\.", "stem.branches.norm."),
            (r"\.ghost([12])\.primary_conv\.0\.", r".pw\1.conv.branches.conv."),
            (r"\.ghost([12])\.primary_conv\.1\.", r".pw\1.conv.branches.norm."),
            (r"\.ghost([12])\.fusion_bn\.0\.", r".cheap\1.sum.normed.branches.identity.norm."),
            (
                r"\.ghost([12])\.cheap_operation\.0\.",
                r".cheap\1.sum.normed.branches.kxk0.conv.",
            ),
            (
                r"\.ghost([12])\.cheap_operation\.1\.",
                r".cheap\1.sum.normed.branches.kxk0.norm.",
            ),
            (r"\.ghost([12])\.cheap_operation\.", r".cheap\1."),
            (r"\.conv_dw\.", ".depthwise.branches.conv."),
            (r"\.bn_dw\.", ".depthwise.branches.norm."),
            (r"\.se\.conv_(reduce|expand)\.", r".se.\1."),
            (r"\.shortcut\.0\.", ".shortcut.depthwise.branches.conv."),
            (r"\.shortcut\.1\.", ".shortcut.depthwise.branches.norm."),
            (r"\.shortcut\.2\.", ".shortcut.pointwise.conv.branches.conv."),
            (r"\.shortcut\.3\.", ".shortcut.pointwise.conv.branches.norm."),
            (r"^conv_head\.", "head.hidden.0."),
            (r"^classifier\.", "head.fc."),
        )


def _scaled(width: float, channels: int) -> int:
    scaled: int = make_divisible(channels * width, 4)
    return scaled


_DEPTHS = (1, 2, 2, 6, 5)

VARIANTS: dict[str, dict[str, Any]] = {
    f"{round(100 * width):03}": {"width": width, "depths": _DEPTHS}
    for width in (0.5, 0.58, 0.8, 1.0, 1.11, 1.3, 1.5, 2.0)
}

register_variants("repghost", RepGhostNet, VARIANTS, peer="repghostnet_{variant}")
