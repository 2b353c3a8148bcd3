"""MobileOne: depthwise 3 x 3 blocks and pointwise blocks in turn.

Source:
    Vasu et al., MobileOne, CVPR 2023, tables 2 and 3, https://arxiv.org/abs/2206.04040

Initial weights are torch's, as in the official code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn

from repblocks.models._network import Network, check_stages
from repblocks.models._rules import MOBILEONE_RULES, SE_RULES, Rules
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants

_BASE_WIDTHS = (64, 128, 256, 512)


@final
class MobileOne(Network):
    """Depthwise and pointwise blocks in turn, the first of each stage with stride 2.

    Args:
        width_factors: Channels of each stage, as multiples of 64, 128, 256 and 512.
        depths: Pairs of blocks of each stage.
        num_conv_branches: Branches of the own block, apart from the stem, which has one.
        se_blocks: Pairs with squeeze-and-excitation at the end of each stage.
        stem_stride: Stride of the stem.
        block: A conv block by name for both places; None for ``mobileone``.
        block_options: Options of the block.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form.
    """

    def __init__(
        self,
        width_factors: Sequence[float],
        *,
        depths: Sequence[int] = (2, 8, 10, 1),
        num_conv_branches: int = 1,
        se_blocks: Sequence[int] = (0, 0, 0, 0),
        stem_stride: int = 2,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, width_factors=width_factors, se_blocks=se_blocks)
        own = {"num_conv_branches": num_conv_branches}
        slot = Slot.create(block, block_options, "mobileone", own)
        stem_slot = Slot.create(block, block_options, "mobileone", {"num_conv_branches": 1})
        widths = [int(w * f) for w, f in zip(_BASE_WIDTHS, width_factors, strict=True)]
        stem_width = min(64, widths[0])
        stages, channels = [], stem_width
        for depth, width, with_se in zip(depths, widths, se_blocks, strict=True):
            blocks = []
            for i in range(depth):
                se = 1 / 16 if i >= depth - with_se else None
                stride = 2 if i == 0 else 1
                blocks.append(slot(channels, channels, 3, stride, groups=channels, se=se))
                blocks.append(slot(channels, width, 1, se=se))
                channels = width
            stages.append(nn.Sequential(*blocks))
        super().__init__(
            stem_slot(in_chans, stem_width, 3, stem_stride),
            stages,
            widths,
            [stem_stride * 2 ** (i + 1) for i in range(len(depths))],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )

    def official_rules(self) -> Rules:
        """Return the names of the official code, of timm and of OpenMMLab, and what they are."""
        return (
            (r"^backbone\.", ""),
            (r"^stage0\.", "stem."),
            (r"^stage(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}."),
            *MOBILEONE_RULES,
            *SE_RULES,
            (r"^linear\.", "head.fc."),
        )


_DEPTHS = (2, 8, 10, 1)

VARIANTS: dict[str, dict[str, Any]] = {
    "s0": {"width_factors": (0.75, 1.0, 1.0, 2.0), "num_conv_branches": 4, "depths": _DEPTHS},
    "s1": {"width_factors": (1.5, 1.5, 2.0, 2.5), "depths": _DEPTHS},
    "s2": {"width_factors": (1.5, 2.0, 2.5, 4.0), "depths": _DEPTHS},
    "s3": {"width_factors": (2.0, 2.5, 3.0, 4.0), "depths": _DEPTHS},
    "s4": {"width_factors": (3.0, 3.5, 3.5, 4.0), "depths": _DEPTHS, "se_blocks": (0, 0, 5, 1)},
}

register_variants(
    "mobileone",
    MobileOne,
    VARIANTS,
    first_convs=("stem.branches.kxk0.conv", "stem.branches.scale.conv"),
)
