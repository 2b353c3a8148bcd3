"""FastViT: RepMixer stages, attention in the last one of larger networks, large kernels between.

Source:
    Vasu et al., FastViT, ICCV 2023, section 3 and table 2, https://arxiv.org/abs/2303.14189
    Official code: https://github.com/apple/ml-fastvit

Differences: BatchNorms that stand before the attention or inside the bottlenecks, and the scales of
both, fold as well; the large kernel between two stages has no activation, as in the published
weights: the official code computes one and drops it. No dropout inside the bottlenecks. Initial
weights are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from repblocks.blocks import RepCPEBlock, RepMixerBlock
from repblocks.blocks._stage import (
    Affine,
    StageBlock,
    create_drop_path,
    create_layer_scale,
    hidden_channels,
)
from repblocks.blocks.rep_mixer import conv_mlp
from repblocks.branches import ConvShape
from repblocks.errors import ConfigurationError
from repblocks.models._mixer import stage
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._rules import MOBILEONE_RULES, SE_RULES, Rules
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class AttentionBlock(StageBlock):
    """Normalised self-attention of all positions, and the bottleneck of RepMixer.

    Args:
        dim: C, a multiple of the channels of a head.
        head_dim: Channels of a head.
        mlp_ratio: Hidden channels of the bottleneck as a multiple of C.
        layer_scale: First value of the scales.
        drop_path: Probability of leaving out a path of a sample in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self, dim: int, *, head_dim: int, mlp_ratio: float, layer_scale: float, drop_path: float
    ) -> None:
        super().__init__()
        if dim % head_dim:
            raise ConfigurationError(
                f"dims must be a multiple of head_dim where there is attention, got {dim} channels "
                f"for heads of {head_dim}."
            )
        self.head_dim = head_dim
        shape = ConvShape.create(dim, dim, 1)
        triple = ConvShape.create(dim, 3 * dim, 1).conv()
        self.qkv: nn.Module = Affine(dim, 2, norm=shape.norm(), conv=triple)
        scale = create_layer_scale(dim, layer_scale)
        self.proj: nn.Module = Affine(dim, 2, conv=shape.conv(bias=True), **scale)
        hidden = hidden_channels(dim, mlp_ratio)
        self.mlp = conv_mlp(dim, hidden, 7, layer_scale, "gelu", 2)
        self.drop_path1 = create_drop_path(drop_path)
        self.drop_path2 = create_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        parts = self.qkv(x).reshape(len(x), 3, -1, self.head_dim, x[0, 0].numel()).transpose(-1, -2)
        query, key, value = parts.unbind(1)  # (N, heads, H * W, head_dim)
        mixed = scaled_dot_product_attention(query, key, value).transpose(-1, -2)
        x = x + self.drop_path1(self.proj(mixed.reshape(x.shape)))
        return x + self.drop_path2(self.mlp(x))


@final
class FastViT(Network):
    """Stages of RepMixer or attention blocks.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        mlp_ratio: Hidden channels of the bottlenecks as a multiple of C.
        attention: Stages of attention at the end; each starts with a positional encoding.
        head_dim: Channels of an attention head.
        layer_scale: First value of the scales.
        drop_path_rate: DropPath probability of the last block; it rises in a line from 0.
        block: A conv block by name for the stem, the layers between stages and the last one; None
            for ``mobileone`` and, between the stages, ``large_kernel``.
        block_options: Options of the block, or of ``mobileone``.
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
        mlp_ratio: float = 4.0,
        attention: int = 0,
        head_dim: int = 32,
        layer_scale: float = 1e-5,
        drop_path_rate: float = 0.0,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, dims=dims)
        slot = Slot.create(block, block_options, "mobileone", {"num_conv_branches": 1})
        large = slot if block else Slot("large_kernel", {"small_kernel": 3})
        common: dict[str, Any] = {"mlp_ratio": mlp_ratio, "layer_scale": layer_scale}
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages, channels = [], dims[0]
        for i, (dim, stage_rates) in enumerate(zip(dims, rates, strict=True)):
            attends = i >= len(dims) - attention
            parts: dict[str, nn.Module] = {}
            if i > 0:
                parts["downsample"] = nn.Sequential(
                    large(channels, dim, 7, 2, groups=channels, activation=None),
                    slot(dim, dim, 1, activation="gelu"),
                )
            if attends:
                parts["pos_emb"] = RepCPEBlock(dim)
            blocks: list[nn.Module] = [
                AttentionBlock(dim, head_dim=head_dim, drop_path=rate, **common)
                if attends
                else RepMixerBlock(dim, drop_path=rate, **common)
                for rate in stage_rates
            ]
            stages.append(stage(**parts, blocks=nn.Sequential(*blocks)))
            channels = dim
        super().__init__(
            _stem(slot, in_chans, dims[0]),
            stages,
            dims,
            doubled(4, len(dims)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
            final=slot(channels, 2 * channels, 3, groups=channels, se=1 / 16, activation="gelu"),
            head_channels=2 * channels,
        )

    def official_rules(self) -> Rules:
        """Return the names of the official code and of timm, and what they are."""
        # The official code has one list of what the stages are made of.
        flat = [
            f"stages.{i}.{name}"
            for i, part in enumerate(self.stages)
            for name, _ in part.named_children()
        ]
        mixer = ".token_mixer.sum.mixed.0"
        return (
            (r"^network\.(\d+)\.", lambda m: f"{flat[int(m[1])]}."),
            (r"^(?:patch_embed|stem)\.0\.", "stem.conv."),
            (r"^(?:patch_embed|stem)\.1\.", "stem.depthwise."),
            (r"^(?:patch_embed|stem)\.2\.", "stem.pointwise."),
            (r"^(conv_exp|final_conv)\.", "final."),
            (r"\.downsample\.proj\.", ".downsample."),
            (r"\.(large_conv|lkb_origin)\.", ".branches.large."),
            (r"\.small_conv\.", ".branches.small."),
            (r"\.lkb_reparam\.", ".conv."),
            (r"\.pos_emb\.(pos_enc|pe)\.", ".pos_emb.conv.sum.encoding.conv."),
            (r"\.pos_emb\.reparam_conv\.", ".pos_emb.conv."),
            (r"\.token_mixer\.reparam_conv\.", ".token_mixer."),
            (r"\.token_mixer\.norm\.(identity|rbr_skip)\.", f"{mixer}.norm.0."),
            (r"\.token_mixer\.mixer\.", f"{mixer}.mixer."),
            (r"\.token_mixer\.layer_scale(\.gamma)?$", ".token_mixer.sum.mixed.1.weight"),
            (r"\.layer_scale_1(\.gamma)?$", ".proj.scale.weight"),
            (r"\.layer_scale(_2)?(\.gamma)?$", ".mlp.pw2.scale.weight"),
            (r"\.(blocks\.\d+)\.norm\.", r".\1.qkv.norm."),
            (r"\.token_mixer\.(qkv|proj)\.", r".\1.conv.conv."),
            (r"\.convffn\.", ".mlp."),
            (r"\.mlp\.conv\.conv\.weight$", ".mlp.conv.conv.branches.conv.weight"),
            (r"\.mlp\.conv\.bn\.", ".mlp.conv.conv.branches.norm."),
            (r"\.mlp\.fc([12])\.", r".mlp.pw\1.conv.conv."),
            *MOBILEONE_RULES,
            *SE_RULES,
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        )


def _stem(slot: Slot, in_chans: int, width: int) -> nn.Sequential:
    """Return a dense, a depthwise and a pointwise block, the first two of stride 2."""
    return stage(
        conv=slot(in_chans, width, 3, 2, activation="gelu"),
        depthwise=slot(width, width, 3, 2, groups=width, activation="gelu"),
        pointwise=slot(width, width, 1, activation="gelu"),
    )


def _row(width: int, depths: Sequence[int], **options: Any) -> dict[str, Any]:
    return {"depths": depths, "dims": doubled(width), **options}


VARIANTS: dict[str, dict[str, Any]] = {
    "t8": _row(48, (2, 2, 4, 2), mlp_ratio=3.0),
    "t12": _row(64, (2, 2, 6, 2), mlp_ratio=3.0),
    "s12": _row(64, (2, 2, 6, 2)),
    "sa12": _row(64, (2, 2, 6, 2), attention=1),
    "sa24": _row(64, (4, 4, 12, 4), attention=1),
    "sa36": _row(64, (6, 6, 18, 6), attention=1, layer_scale=1e-6),
    "ma36": _row(76, (6, 6, 18, 6), attention=1, layer_scale=1e-6),
}

register_variants(
    "fastvit",
    FastViT,
    VARIANTS,
    first_convs=("stem.conv.conv", "stem.conv.branches.kxk0.conv", "stem.conv.branches.scale.conv"),
)
