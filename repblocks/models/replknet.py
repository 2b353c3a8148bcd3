"""RepLKNet: depthwise kernels of up to 31 x 31 with a small one beside each.

Source:
    Ding et al., RepLKNet, CVPR 2022, section 4.1 and table 5, https://arxiv.org/abs/2203.06717
    Official code: https://github.com/DingXiaoH/RepLKNet-pytorch

Differences: all BatchNorms fold, the one before the classifier into a factor and a summand for each
channel. Initial weights are torch's, as in the official code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, final

from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from repblocks.blocks import STAGE_BLOCKS, ConvBlock, create_block
from repblocks.branches import ConvShape
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._rules import Rules, deployed_where_biased
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class NormBlock(ConvBlock):
    """BatchNorm alone, which becomes a depthwise 1 x 1 convolution."""

    takes_any_kernel = False

    @classmethod
    def build_branches(cls, shape: ConvShape) -> nn.Module:
        """Return the one branch."""
        return shape.identity_norm()


@final
class RepLKNet(Network):
    """A stem of four convolutions, and stages of RepLK blocks with two between them.

    Args:
        depths: RepLK blocks of each stage, each with its bottleneck.
        dims: Channels of each stage.
        kernel_sizes: Taps of the large kernel of each stage.
        small_kernel: Taps of the small kernel beside it; None for none.
        dw_ratio: Channels of the large kernel as a multiple of those of the stage.
        drop_path_rate: DropPath probability of the last block; it rises in a line from 0.
        block: A conv block by name for the place of the large kernel; None for ``large_kernel``.
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
        dims: Sequence[int],
        *,
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        drop_path_rate: float = 0.0,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, dims=dims, kernel_sizes=kernel_sizes)
        slot = Slot.create(block, block_options, "large_kernel", {"small_kernel": small_kernel})
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages: list[nn.Module] = []
        channels = dims[0]
        for dim, taps, stage_rates in zip(dims, kernel_sizes, rates, strict=True):
            blocks = _transition(channels, dim) if stages else []
            size, chosen = slot.of_stage(taps)
            blocks += [
                STAGE_BLOCKS["replk"](
                    dim, kernel_size=size, dw_ratio=dw_ratio, drop_path=rate, **chosen
                )
                for rate in stage_rates
            ]
            channels = dim
            stages.append(nn.Sequential(*blocks))
        super().__init__(
            _stem(in_chans, dims[0]),
            stages,
            dims,
            doubled(4, len(dims)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
            final=NormBlock(channels, channels, 1, groups=channels, activation=None),
        )

    def official_rules(self) -> Rules:
        """Return the names of the official code and of OpenMMLab, and what they are."""
        return (
            (r"^backbone\.", ""),
            (r"^(stages\.\d+\.)?norm\.", "final.branches.norm."),
            (r"^head\.(?=(weight|bias)$)", "head.fc."),
            (r"^stem\.(\d+)\.(?!branches\.)", r"stem.\1.branches."),
            (r"^transitions\.(\d+)\.", lambda m: f"stages.{int(m[1]) + 1}."),
            (r"^(stages\.\d+\.\d+)\.(?=conv\.|bn\.)", r"\1.branches."),
            (r"^stages\.(\d+)\.blocks\.(\d+)\.", _half_of_block),
            (r"\.mixer\.prelkb_bn\.", ".mixer.0.norm_before."),
            (r"\.mlp\.preffn_bn\.", ".mlp.0.norm_before."),
            (r"\.(mixer|mlp)\.pw1\.", r".\1.0.conv.branches."),
            (r"\.mixer\.pw2\.", ".mixer.4.conv.branches."),
            (r"\.mlp\.pw2\.", ".mlp.2.conv.branches."),
            (r"\.large_kernel\.lkb_origin\.", ".2.large.branches.large."),
            (r"\.large_kernel\.small_conv\.", ".2.large.branches.small."),
            (r"\.large_kernel\.lkb_reparam\.", ".2."),
            (r"\.bn\.", ".norm."),
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of which those of our deployed form have kept their names."""
        return deployed_where_biased(state, ((r"\.branches\.conv\.", ".conv."),))


def _half_of_block(found: re.Match[str]) -> str:
    """Return the place of one of the official blocks, two of which are one of ours."""
    block, is_mlp = divmod(int(found[2]), 2)
    before = 2 if int(found[1]) else 0  # the layers between the stages
    return f"stages.{found[1]}.{before + block}.{'mlp' if is_mlp else 'mixer'}."


def _stem(in_channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(
        create_block("plain", in_channels, dim, 3, 2),
        create_block("plain", dim, dim, 3, groups=dim),
        create_block("plain", dim, dim, 1),
        create_block("plain", dim, dim, 3, 2, groups=dim),
    )


def _transition(in_channels: int, dim: int) -> list[nn.Module]:
    return [
        create_block("plain", in_channels, dim, 1),
        create_block("plain", dim, dim, 3, 2, groups=dim),
    ]


_DEPTHS = (2, 2, 18, 2)

VARIANTS: dict[str, dict[str, Any]] = {
    "31b": {"depths": _DEPTHS, "dims": (128, 256, 512, 1024)},
    "31l": {"depths": _DEPTHS, "dims": (192, 384, 768, 1536)},
    "xl": {
        "depths": _DEPTHS,
        "dims": (256, 512, 1024, 2048),
        "kernel_sizes": (27, 27, 27, 13),
        "small_kernel": None,
        "dw_ratio": 1.5,
    },
}

register_variants(
    "replknet",
    RepLKNet,
    VARIANTS,
    {"xl": 320},
    first_convs=("stem.0.conv", "stem.0.branches.conv"),
)
