"""UniRepLKNet: dilated kernels beside a large one, in few blocks, and 3 x 3 in the others.

Source:
    Ding et al., UniRepLKNet, CVPR 2024, section 3.2 and table 11, https://arxiv.org/abs/2311.15599
    Official code: https://github.com/AILab-CVC/UniRepLKNet

The layer normalisation of the stem, between the stages and of the classifier stays in the deployed
form: it depends on the input. Initial weights are torch's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, final

from timm.layers import LayerNorm2d, NormMlpClassifierHead, calculate_drop_path_rates
from torch import Tensor, nn

from repblocks.blocks import STAGE_BLOCKS
from repblocks.branches import check_flag
from repblocks.errors import ConfigurationError
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._rules import Rules, deployed_where_biased, renamed
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class UniRepLKNet(Network):
    """A stem of two strided convolutions, and stages with one between them.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        kernel_sizes: Taps of the blocks of each stage, from the start again where there are fewer.
        layer_scale: First value of the scales of the blocks.
        drop_path_rate: DropPath probability of the last block; it rises in a line from 0.
        block: A conv block by name for the depthwise places; None for ``dilated_reparam``, and
            ``plain`` where a kernel has fewer than 7 taps.
        block_options: Options of the block, or of ``dilated_reparam``.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        feature_norms: Whether there is a layer normalisation of the features of each stage, as the
            official code has for detection and segmentation; see ``normed_features``.
        deploy: Build the deployed form.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        kernel_sizes: Sequence[Sequence[int]] = ((3,), (13,), (13,), (13,)),
        layer_scale: float = 1e-6,
        drop_path_rate: float = 0.0,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        feature_norms: bool = False,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, dims=dims, kernel_sizes=kernel_sizes)
        check_flag("feature_norms", feature_norms)
        slot = Slot.create(block, block_options, "dilated_reparam")
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages: list[nn.Module] = []
        channels = dims[0]
        for dim, sizes, stage_rates in zip(dims, kernel_sizes, rates, strict=True):
            blocks = _strided(channels, dim) if stages else []
            for taps, rate in zip(cycle(sizes), stage_rates, strict=False):
                size, chosen = slot.of_stage(taps)
                chosen |= {"block": block, "layer_scale": layer_scale, "drop_path": rate}
                blocks.append(STAGE_BLOCKS["unireplknet"](dim, kernel_size=size, **chosen))
            channels = dim
            stages.append(nn.Sequential(*blocks))
        half = dims[0] // 2
        super().__init__(
            nn.Sequential(*_strided(in_chans, half), nn.GELU(), *_strided(half, dims[0])),
            stages,
            dims,
            doubled(4, len(dims)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
            head=NormMlpClassifierHead,
        )
        norms = [LayerNorm2d(dim, eps=1e-6) for dim in dims] if feature_norms else []
        self.feature_norms = nn.ModuleList(norms)

    def normed_features(self, x: Tensor) -> list[Tensor]:
        """Map images ``(N, C, H, W)`` to the normalised features of each stage, ``(N, C_i, *)``.

        Raises:
            ConfigurationError: if the network was built without ``feature_norms``.
        """
        if not self.feature_norms:
            raise ConfigurationError("normed_features needs a network with feature_norms=True.")
        x, found = self.stem(x), []
        for stage, norm in zip(self.stages, self.feature_norms, strict=True):
            x = stage(x)
            found.append(norm(x))
        return found

    def official_rules(self) -> Rules:
        """Return the names of the official code, and as timm calls those of ConvNeXt."""
        inside = r"(?=dwconv|conv_dw|norm\.|se\.(?:down|up)\.|pwconv|mlp\.|act\.|gamma$)"
        kernels = ".mixer.kernels.branches"
        return (
            *(_OF_DETECTORS if self.feature_norms else ()),
            (r"^downsample_layers\.0\.", "stem."),
            (r"^(?:downsample_layers\.(\d+)|stages\.(\d+)\.downsample)\.", _of_stage),
            (rf"^stages\.(\d+)\.(?:blocks\.)?(\d+)\.{inside}", _block),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc([12])\.", r".pwconv\1."),
            (r"\.dwconv\.lk_origin\.", f"{kernels}.large.conv."),
            (r"\.dwconv\.origin_bn\.", f"{kernels}.large.norm."),
            (r"\.dwconv\.dil_conv_k(\d+)_(\d+)\.", rf"{kernels}.k\1_d\2.conv."),
            (r"\.dwconv\.dil_bn_k(\d+)_(\d+)\.", rf"{kernels}.k\1_d\2.norm."),
            (r"\.dwconv\.", f"{kernels}.conv."),
            (r"^(stages\.\d+\.\d+)\.norm\.", r"\1.mixer.norm."),
            (r"\.se\.down\.", ".se.reduce."),
            (r"\.se\.up\.", ".se.expand."),
            (r"\.pwconv1\.1\.", ".pw1.conv.conv."),
            (r"\.act\.1\.gamma$", ".grn.gamma"),
            (r"\.act\.1\.beta$", ".pw2.shift.bias"),
            (r"\.pwconv2\.0\.", ".pw2.conv.branches.conv."),
            (r"\.pwconv2\.2\.", ".pw2.conv.branches.norm."),
            (r"^(stages\.\d+\.\d+)\.gamma$", r"\1.pw2.scale.weight"),
            (r"^norm\.", "head.norm."),
            (r"^head\.(?=(weight|bias)$)", "head.fc."),
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with the norms of small kernels beside these, and deployed kernels."""
        if self.feature_norms and self.num_classes == 0:  # the features have norms of their own
            state = {f"head.{k}": v for k, v in self.head.state_dict().items()} | state
        small = ".kernels.branches.conv.weight"
        norms = [name.replace(small, ".norm") for name in state if name.endswith(small)]
        state = renamed(state, ((r"\.mixer\.norm\.", ".mixer.kernels.branches.norm."),), norms)
        kernels = r"\.mixer\.kernels\.branches\.(large\.)?conv\."
        rules = ((kernels, ".mixer."), (r"\.pw2\.conv\.branches\.conv\.", ".pw2."))
        state = deployed_where_biased(state, rules)
        linear = [n for n, v in state.items() if n.endswith(".pw2.weight") and v.ndim == 2]
        return state | {name: state[name][..., None, None] for name in linear}


#: What files of detectors and segmenters have beside the backbone, and what its norms are here.
_OF_DETECTORS: Rules = (
    (r"^(neck|rpn_head|roi_head|decode_head|auxiliary_head)\.", None),
    (r"^backbone\.", ""),
    (r"^norm(\d)\.", r"feature_norms.\1."),
)


def _of_stage(found: re.Match[str]) -> str:
    return f"stages.{found[1] or found[2]}."


def _block(found: re.Match[str]) -> str:
    before = 2 if int(found[1]) else 0  # the layers between the stages
    return f"stages.{found[1]}.{before + int(found[2])}."


def _strided(in_channels: int, dim: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, dim, 3, 2, 1), LayerNorm2d(dim, eps=1e-6)]


def _row(depths: Sequence[int], width: int, third: Sequence[int] = (13,)) -> dict[str, Any]:
    """Return the arguments for the channels of the first stage and the kernels of the third."""
    dims = doubled(width)
    return {"depths": depths, "dims": dims, "kernel_sizes": ((3,), (13,), third, (13,))}


VARIANTS: dict[str, dict[str, Any]] = {
    "a": _row((2, 2, 6, 2), 40),
    "f": _row((2, 2, 6, 2), 48),
    "p": _row((2, 2, 6, 2), 64),
    "n": _row((2, 2, 8, 2), 80),
    "t": _row((3, 3, 18, 3), 80, (13, 3)),
    "s": _row((3, 3, 27, 3), 96, (13, 3, 3)),
    "b": _row((3, 3, 27, 3), 128, (13, 3, 3)),
    "l": _row((3, 3, 27, 3), 192, (13, 3, 3)),
    "xl": _row((3, 3, 27, 3), 256, (13, 3, 3)),
}

register_variants(
    "unireplknet",
    UniRepLKNet,
    VARIANTS,
    {"b": 384, "l": 384, "xl": 384},  # of the weights for 1000 classes
    first_convs=("stem.0",),
)
