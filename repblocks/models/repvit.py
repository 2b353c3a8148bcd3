"""RepViT: stages of RepViT blocks with a strided depthwise and a pointwise layer between them.

Source:
    Wang et al., RepViT, CVPR 2024, section 3 and table 1, https://arxiv.org/abs/2307.09283
    Official code: https://github.com/THU-MIG/RepViT

``m0_9`` to ``m2_3`` are the networks of the paper, ``m0_6`` is one of its code; ``m1``, ``m2`` and
``m3`` are those of its first version, whose token mixers have no BatchNorm after the sum. The
classifier is the average of two, each with a BatchNorm of its own, of which one learns from a
teacher; in training the network then returns the list of both scores.

Differences: the classifiers are averaged when the network is deployed whatever it was trained
with; all BatchNorms fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

from timm.layers import make_divisible
from torch import Tensor, nn

from repblocks.blocks import RepViTBlock
from repblocks.models._heads import HEADS, PooledHead, norm_linear, with_heads
from repblocks.models._mixer import ChannelMixer, convolutional_stem, stage
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._rules import PLAIN_RULES, Rules
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class RepViT(Network):
    """RepViT blocks, every second with squeeze-and-excitation.

    Args:
        depths: Blocks of each stage, after its strided layers.
        dims: Channels of each stage.
        mlp_ratio: Hidden channels of the bottlenecks as a multiple of C.
        kernel_size: Taps of the token mixers and of the strided layers.
        legacy: Whether the token mixers are those of the first version.
        distilled: Whether the classifier is the average of two.
        block: A conv block by name for the stem and the strided layers; None for ``plain``.
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
        mlp_ratio: float = 2.0,
        kernel_size: int = 3,
        legacy: bool = False,
        distilled: bool = True,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, dims=dims)
        slot = Slot.create(block, block_options, "plain")
        create = partial(RepViTBlock, kernel_size=kernel_size, mlp_ratio=mlp_ratio, legacy=legacy)
        stages, channels = [], dims[0]
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            hidden = make_divisible(dim * 0.25, 8, round_limit=0.0)
            blocks = [create(dim, se=hidden if j % 2 == 0 else None) for j in range(depth)]
            before: dict[str, nn.Module] = {}
            if i > 0:
                before["downsample"] = stage(
                    before=create(channels),
                    depthwise=slot(
                        channels, channels, kernel_size, 2, groups=channels, activation=None
                    ),
                    pointwise=slot(channels, dim, 1, activation=None),
                    mixer=ChannelMixer(dim, mlp_ratio, zero_init=True),
                )
            stages.append(stage(**before, blocks=nn.Sequential(*blocks)))
            channels = dim
        super().__init__(
            convolutional_stem(slot, in_chans, dims[0]),
            stages,
            dims,
            doubled(4, len(dims)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
            head=partial(PooledHead, classifier=partial(norm_linear, distilled=distilled)),
        )
        self.legacy, self.distilled = legacy, distilled

    def official_rules(self) -> Rules:
        """Return the names of the official code and of timm, and what they are."""
        flat = ["stem"]
        for i, part in enumerate(self.stages):
            names = dict(part.named_children())
            if "downsample" in names:
                flat += [f"stages.{i}.downsample.before", f"stages.{i}.strided"]
            flat += [f"stages.{i}.blocks.{j}" for j in range(len(list(names["blocks"].children())))]
        mixer = ".token_mixer.mixer.branches"
        summed = mixer if self.legacy else f"{mixer}.sum"
        return (
            # The official code has one list of all.
            (r"^features\.(\d+)\.", lambda m: f"{flat[int(m[1])]}."),
            (r"\.strided\.token_mixer\.0\.", ".downsample.depthwise."),
            (r"\.strided\.token_mixer\.2\.", ".downsample.pointwise."),
            (r"\.strided\.", ".downsample.mixer."),
            (r"\.token_mixer\.1\.", ".se."),
            (r"\.token_mixer\.0\.", ".token_mixer."),
            (r"\.channel_mixer\.m\.0\.", ".channel_mixer.conv1."),
            (r"\.channel_mixer\.m\.2\.", ".channel_mixer.conv2."),
            (r"^stem\.(0|conv1)\.", "stem.conv."),
            (r"^stem\.(2|conv2)\.", "stem.conv2."),
            (r"^classifier\.classifier(_dist)?\.", r"head.head\1."),
            # timm
            (r"\.downsample\.pre_block\.", ".downsample.before."),
            (r"\.spatial_downsample\.", ".depthwise."),
            (r"\.channel_downsample\.", ".pointwise."),
            (r"\.downsample\.ffn\.", ".downsample.mixer.channel_mixer."),
            # both
            (r"\.token_mixer\.conv\.c\.", f"{summed}.kxk.conv."),
            (r"\.token_mixer\.conv\.bn\.", f"{summed}.kxk.norm."),
            (r"\.token_mixer\.conv1\.c\.", f"{summed}.pointwise.conv."),
            (r"\.token_mixer\.conv1\.bn\.", f"{summed}.pointwise.norm."),
            (r"\.token_mixer\.conv1\.", f"{summed}.pointwise.conv."),
            (r"\.token_mixer\.bn\.", f"{mixer}.norm."),
            (r"\.se\.fc1\.", ".se.reduce."),
            (r"\.se\.fc2\.", ".se.expand."),
            (r"\.channel_mixer\.conv([12])\.(c|bn)\.", r".pw\1.conv.\2."),
            (r"\.channel_mixer\.conv([12])\.", r".pw\1."),
            (r"^head\.head\.", "head.fc.heads.0." if self.distilled else "head.fc."),
            (r"^head\.head_dist\.", "head.fc.heads.1." if self.distilled else "head.head_dist."),
            (r"^(head\.fc\.(?:.*\.)?)bn\.", r"\1norm."),
            (r"^(head\.fc\.(?:.*\.)?)l\.", r"\1linear."),
            (r"^(?:head|classifier)\.(weight|bias)$", r"head.fc.linear.\1"),
            *PLAIN_RULES,
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights in which one deployed classifier has become those of the network."""
        return with_heads(state, self.state_dict())


def _row(width: int, depths: Sequence[int], **options: Any) -> dict[str, Any]:
    return {"depths": depths, "dims": doubled(width), **options}


VARIANTS: dict[str, dict[str, Any]] = {
    "m0_6": _row(40, (1, 1, 8, 1)),
    "m0_9": _row(48, (2, 2, 14, 2)),
    "m1_0": _row(56, (2, 2, 14, 2)),
    "m1_1": _row(64, (2, 2, 12, 2)),
    "m1_5": _row(64, (4, 4, 24, 4)),
    "m2_3": _row(80, (6, 6, 34, 2)),
    "m1": _row(48, (2, 2, 14, 2), legacy=True),
    "m2": _row(64, (2, 2, 12, 2), legacy=True),
    "m3": _row(64, (4, 4, 18, 2), legacy=True),
}

register_variants(
    "repvit",
    RepViT,
    VARIANTS,
    first_convs=("stem.conv.conv", "stem.conv.branches.conv"),
    classifiers=HEADS,
)
