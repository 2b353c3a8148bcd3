"""RepNeXt: stages of mixed depthwise kernels whose shortcut passes the activation.

Source:
    The shapes are those of Liu et al., ConvNeXt, CVPR 2022, https://arxiv.org/abs/2201.03545; the
    block is ``repblocks.blocks.RepNeXtBlock``, which has nothing to do with the chunked RepNeXt of
    Zhao et al., 2024, https://arxiv.org/abs/2406.16004.

``mini`` is a network of ours for images of 28 to 32 pixels: 2 x 2 patches, three stages. Initial
weights are torch's: the activation shrinks what the shortcut carries, and ConvNeXt's smaller ones
leave too little of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from timm.layers import calculate_drop_path_rates
from torch import nn

from repblocks.blocks import ConvBlock, RepNeXtBlock, create_block
from repblocks.branches import ConvShape
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._variants import register_variants


@final
class NormConvBlock(ConvBlock):
    """BatchNorm, then a convolution with bias: what stands between two stages."""

    @classmethod
    def build_branches(cls, shape: ConvShape) -> nn.Module:
        """Return the one branch."""
        series = nn.Sequential()
        series.add_module("norm", shape.pointwise(shape.in_channels).norm())
        series.add_module("conv", shape.conv(bias=True))
        return series


@final
class RepNeXt(Network):
    """A patch stem, and stages of RepNeXt blocks with a strided convolution between them.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        patch_size: Kernel size and stride of the stem.
        kernel_sizes: Depthwise kernel sizes of the chunks.
        drop_path_rate: DropPath probability of the last block; it rises in a line from 0.
        deploy_shortcut: ``"add"`` or ``"expand"``, see ``RepNeXtBlock``.
        block: A conv block by name for the depthwise place; None for the chunked kernels.
        block_options: Options of the block.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form.

    Raises:
        ConfigurationError: if there are block options, but no block.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        patch_size: int = 4,
        kernel_sizes: Sequence[int] = (7, 5, 3),
        drop_path_rate: float = 0.0,
        deploy_shortcut: str = "add",
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, dims=dims)
        options = dict(block_options or {})
        if block is not None and "kernel_size" in options:
            kernel_sizes = (options.pop("kernel_size"),)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages, channels = [], dims[0]
        for i, (dim, stage_rates) in enumerate(zip(dims, rates, strict=True)):
            blocks: list[nn.Module] = []
            if i > 0:
                blocks.append(NormConvBlock(channels, dim, 2, 2, 0, activation=None))
            blocks += [
                RepNeXtBlock(
                    dim,
                    kernel_sizes=kernel_sizes,
                    drop_path=rate,
                    deploy_shortcut=deploy_shortcut,
                    block=block,
                    block_options=options,
                )
                for rate in stage_rates
            ]
            channels = dim
            stages.append(nn.Sequential(*blocks))
        super().__init__(
            create_block("plain", in_chans, dims[0], patch_size, patch_size, 0, activation=None),
            stages,
            dims,
            doubled(patch_size, len(dims)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )


VARIANTS: dict[str, dict[str, Any]] = {
    "mini": {"depths": (2, 2, 2), "dims": (48, 96, 192), "patch_size": 2},
    "tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
}

register_variants("repnext", RepNeXt, VARIANTS, {"mini": 32})
