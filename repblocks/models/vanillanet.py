"""VanillaNet: few wide layers without shortcuts.

Source:
    Chen et al., VanillaNet: the Power of Minimalism in Deep Learning, NeurIPS 2023, table 6,
    https://arxiv.org/abs/2305.12972
    Official code: https://github.com/huawei-noah/VanillaNet

In training each layer is two convolutions with an activation between them, which
``repblocks.blocks.anneal(model, progress)`` takes away: it has to be called before each epoch, and
no fold is possible before its end.

Differences: the classifier is one linear layer in both forms, where the official one has an
annealed activation in training, too; no convolution has a bias before its BatchNorm. Initial
weights are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn

from repblocks.blocks import STAGE_BLOCKS
from repblocks.errors import ConfigurationError
from repblocks.models._network import Network, check_stages, doubled
from repblocks.models._slots import Slot
from repblocks.models._variants import register_variants


@final
class VanillaNet(Network):
    """A stem of 4 x 4 patches, and stages of vanilla blocks; later ones start with a pooling.

    Args:
        depths: Blocks of each stage; the first may have none.
        dims: Channels of each stage.
        act_reach: Positions on each side that a series activation reads.
        schedule: How the annealed activations follow the training: ``"linear"`` or ``"cosine"``.
        block: A conv block by name for the depthwise places of the series; None for ``plain``.
        block_options: Options of the block.
        in_chans: Channels of the images.
        num_classes: Scores.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        deploy: Build the deployed form.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int] = (512, 1024, 2048, 4096),
        *,
        act_reach: int = 3,
        schedule: str = "linear",
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        check_stages(depths=depths, dims=dims)
        size, chosen = Slot.create(block, block_options, "plain").of_stage(2 * act_reach + 1)
        if size % 2 == 0:
            raise ConfigurationError(f"kernel_size must be odd to keep the size, got {size}.")
        options = {"act_reach": size // 2, "schedule": schedule, **chosen}
        vanilla = STAGE_BLOCKS["vanilla"]
        stages, channels = [], dims[0]
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = []
            for j in range(depth):
                pool = 2 if i > 0 and j == 0 else 1
                blocks.append(vanilla(channels, out_channels=dim, pool=pool, **options))
                channels = dim
            stages.append(nn.Sequential(*(blocks or [nn.Identity()])))
        super().__init__(
            vanilla(in_chans, out_channels=dims[0], hidden=dims[0], patch=4, **options),
            stages,
            dims,
            doubled(4, len(dims)),
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            deploy=deploy,
        )


_DEPTHS = {5: (0, 1, 1, 1), 6: (0, 1, 1, 2), **{n: (1, 1, n - 6, 2) for n in range(7, 14)}}

VARIANTS: dict[str, dict[str, Any]] = {str(n): {"depths": row} for n, row in _DEPTHS.items()}

register_variants("vanillanet", VanillaNet, VARIANTS)
