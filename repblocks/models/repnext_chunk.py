"""RepNeXt of 2024: stages of chunked blocks, with copied channels under two kernels between them.

Source:
    Zhao et al., RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization, 2024,
    section 3 and table 1, https://arxiv.org/abs/2406.16004
    Official code: https://github.com/suous/RepNeXt

It has nothing to do with the networks ``repnext`` of this library.

Differences: no biases in front of a BatchNorm, which takes them away again: those of published
weights are taken off its mean; all BatchNorms fold, of which the official code leaves one in each
block; the classifiers are averaged when the network is deployed. Initial weights are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from repblocks.blocks import RepNeXtChunkBlock
from repblocks.blocks._stage import Affine, StageBlock
from repblocks.blocks.chunk_conv import MixedKernelsBlock
from repblocks.branches import ConvShape
from repblocks.models._heads import HEADS, PooledHead, norm_linear, with_heads
from repblocks.models._mixer import ChannelMixer, convolutional_stem, stage
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._rules import Rules
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class CopiedKernels(StageBlock):
    """All channels under a small kernel, and once more under a large one, with a stride of 2.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        norm = ConvShape.create(dim, dim, 1).norm
        small = MixedKernelsBlock(dim, dim, 3, 2, groups=dim)
        large = MixedKernelsBlock(dim, dim, 7, 2, groups=dim)
        self.small: nn.Module = Affine(dim, 2, mixed=small, norm=norm())
        self.large: nn.Module = Affine(dim, 2, mixed=large, norm=norm())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, 2 C, H / 2, W / 2)``, first all of the small kernel."""
        return torch.cat([self.small(x), self.large(x)], dim=1)


@final
class RepNeXtChunk(Network):
    """Stages of chunked blocks; each has twice the channels of the one before.

    Args:
        depths: Blocks of each stage.
        width: Channels of the first stage.
        mlp_ratio: Hidden channels of the bottlenecks as a multiple of C.
        distilled: Whether the classifier is the average of two.
        block: A conv block by name for the stem; None for ``plain``.
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
        width: int,
        *,
        mlp_ratio: float = 2.0,
        distilled: bool = True,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths)
        slot = Slot.create(block, block_options, "plain")
        dims = doubled(width, len(depths))
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            before: dict[str, nn.Module] = {}
            if i > 0:
                copied, mixer = CopiedKernels(dim // 2), ChannelMixer(dim, mlp_ratio)
                before["downsample"] = stage(copied=copied, mixer=mixer)
            blocks = [RepNeXtChunkBlock(dim, mlp_ratio=mlp_ratio) for _ in range(depth)]
            stages.append(stage(**before, blocks=nn.Sequential(*blocks)))
        super().__init__(
            convolutional_stem(slot, in_chans, width),
            stages,
            dims,
            doubled(4, len(dims)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
            head=partial(PooledHead, classifier=partial(norm_linear, distilled=distilled)),
        )

    def official_rules(self) -> Rules:
        """Return the names of the official code, and what they are."""
        return (
            (r"^stem\.stem\.0\.", "stem.conv.branches."),
            (r"^stem\.stem\.2\.", "stem.conv2.branches."),
            (r"\.(blocks\.\d+)\.token_mixer\.conv_s\.", r".\1.chunks.1.mixed.branches."),
            (r"\.(blocks\.\d+)\.token_mixer\.conv_m\.", r".\1.chunks.2.mixed.branches."),
            (r"\.token_mixer\.conv_l\.0\.", ".chunks.3.axis1.conv."),
            (r"\.token_mixer\.conv_l\.1\.", ".chunks.3.axis0.conv."),
            (r"\.downsample\.token_mixer\.conv_s\.", ".downsample.copied.small.mixed.branches."),
            (r"\.downsample\.token_mixer\.conv_m\.", ".downsample.copied.large.mixed.branches."),
            (r"(\.small\..*)\.conv_3_w\.", r"\1.series3.axis1.conv."),
            (r"(\.small\..*)\.conv_3_h\.", r"\1.series3.axis0.conv."),
            (r"\.conv_3_w\.", ".1x3.conv."),
            (r"\.conv_3_h\.", ".3x1.conv."),
            (r"\.conv_(3_3|7_7)\.", ".square.conv."),
            (r"\.conv_2_2\.", ".corners.conv."),
            (r"\.conv_(\d)_(\d)\.", r".\1x\2.conv."),
            (r"\.conv_(\d)_w\.", r".series\1.axis1.conv."),
            (r"\.conv_(\d)_h\.", r".series\1.axis0.conv."),
            (r"\.(blocks\.\d+)\.norm\.", r".\1.pw1.norm_before."),
            (r"\.downsample\.channel_mixer\.", ".downsample.mixer.channel_mixer."),
            (r"\.channel_mixer\.0\.", ".pw1.conv.branches."),
            (r"\.channel_mixer\.2\.", ".pw2.conv.branches."),
            (r"^head\.head\.", "head.fc.heads.0."),
            (r"^head\.head_dist\.", "head.fc.heads.1."),
            # fused
            (r"\.branches\.(weight|bias)$", r".conv.\1"),
            (r"^head\.(weight|bias)$", r"head.fc.linear.\1"),
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with the norms of copied channels parted, and the biases in the norms."""
        parted: dict[str, Tensor] = {}
        for name, value in state.items():
            path, is_norm, kind = name.partition(".downsample.norm.")
            if is_norm:
                halves = value.chunk(2) if value.ndim else (value, value)
                for size, half in zip(("small", "large"), halves, strict=True):
                    parted[f"{path}.downsample.copied.{size}.norm.{kind}"] = half
            else:
                parted[name] = value
        for name in [n for n in parted if ".mixed." in n and n.endswith(".bias")]:
            _into_norm_(parted, name)
        # A file that has norms left goes through the training form, whatever this network is in.
        has_norms = any(".norm_before." in name for name in parted)
        form = self.in_training_form() if has_norms and self.is_deployed else self
        return with_heads(parted, form.state_dict())


def _into_norm_(state: dict[str, Tensor], name: str) -> None:
    """Take a bias in front of a BatchNorm off its mean."""
    path = name.partition(".mixed.")[0]
    place, chunk = path.rpartition(".chunks.")[::2]
    norm = f"{place}.pw1.norm_before.running_mean" if place else f"{path}.norm.running_mean"
    if norm not in state:
        return  # what is missing is said by whoever loads the rest
    bias = state.pop(name)
    mean = state[norm].clone()
    part = mean.chunk(4)[int(chunk)] if place else mean
    part -= bias
    state[norm] = mean


def _row(width: int, depths: Sequence[int]) -> dict[str, Any]:
    return {"depths": depths, "width": width}


VARIANTS: dict[str, dict[str, Any]] = {
    "m0": _row(40, (2, 2, 9, 1)),
    "m1": _row(48, (3, 3, 15, 2)),
    "m2": _row(56, (3, 3, 15, 2)),
    "m3": _row(64, (3, 3, 13, 2)),
    "m4": _row(64, (5, 5, 25, 4)),
    "m5": _row(80, (7, 7, 35, 2)),
}

register_variants(
    "repnext_chunk",
    RepNeXtChunk,
    VARIANTS,
    first_convs=("stem.conv.conv", "stem.conv.branches.conv"),
    classifiers=HEADS,
)
