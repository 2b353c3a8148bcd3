"""SPAN: super-resolution with attention that has no parameters.

Source:
    Wan et al., Swift Parameter-free Attention Network, CVPR workshops 2024, section 3,
    https://arxiv.org/abs/2311.12770
    Official code: https://github.com/hongyuanyu/SPAN (basicsr/archs/span_arch.py)

The network maps images to images: it has no classifier and is not registered with timm.

Differences: the mean and the range of the images are left to what prepares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from repblocks.branches import check_count
from repblocks.models._network import fold_shapes
from repblocks.models._published import Published
from repblocks.models._rules import Rules
from repblocks.models._slots import Slot


class AttentionBlock(nn.Module):
    """Three 3 x 3 blocks, whose output is also the gate, an odd function of it.

    Args:
        slot: What stands in the places.
        width: C.
    """

    def __init__(self, slot: Slot, width: int) -> None:
        super().__init__()
        self.conv1 = slot(width, width, 3, activation="silu")
        self.conv2 = slot(width, width, 3, activation="silu")
        self.conv3 = slot(width, width, 3, activation=None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to the same, and to what comes out of the first block."""
        first = self.conv1(x)
        y = self.conv3(self.conv2(first))
        return (x + y) * (y.sigmoid() - 0.5), first


@final
class SPAN(Published):
    """Attention blocks; the first and last features of them together become pixels.

    Args:
        scale: Factor of height and width: 2, 3, 4 and so on.
        depth: Attention blocks.
        width: Channels.
        block: A conv block by name for all 3 x 3 places but the last, which is a convolution; None
            for ``conv3xc`` without BatchNorm.
        block_options: Options of the block.
        in_chans: Channels of the images.
        deploy: Build the deployed form.

    Raises:
        ConfigurationError: if an argument is out of range.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """

    def __init__(
        self,
        scale: int,
        *,
        depth: int = 6,
        width: int = 52,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        check_count("scale", scale)
        check_count("depth", depth, 2)
        slot = Slot.create(block, block_options, "conv3xc", {"norm": False})
        self.stem = slot(in_chans, width, 3, activation=None)
        self.blocks = nn.ModuleList(AttentionBlock(slot, width) for _ in range(depth))
        self.conv = slot(width, width, 3, activation=None)
        self.fuse = nn.Conv2d(4 * width, width, 1)
        self.enlarge = nn.Sequential(
            nn.Conv2d(width, in_chans * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )
        if deploy:
            fold_shapes(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to ``(N, C, scale * H, scale * W)``."""
        kept = [self.stem(x)]
        y = kept[0]
        for block in self.blocks:
            y, first = block(y)
            kept.append(y)
        together = torch.cat([kept[0], self.conv(y), kept[1], first], 1)
        enlarged: Tensor = self.enlarge(self.fuse(together))
        return enlarged

    def official_rules(self) -> Rules:
        """Return the names of the official code, and what they are."""
        return (
            (r"^block_(\d+)\.c([123])_r\.", lambda m: f"blocks.{int(m[1]) - 1}.conv{m[2]}."),
            (r"^conv_1\.", "stem."),
            (r"^conv_2\.", "conv."),
            (r"^conv_cat\.", "fuse."),
            (r"^upsampler\.", "enlarge."),
            (r"\.sk\.", ".branches.shortcut.conv."),
            (r"\.conv\.([012])\.", r".branches.series.conv\1.conv."),
            (r"(^|\.)eval_conv\.", r"\1conv."),
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights without the kernels that evaluation computes anew from the branches."""
        shortcut = ".branches.shortcut.conv.weight"
        trained = {name.removesuffix(shortcut) for name in state if name.endswith(shortcut)}
        copies = {f"{path}.conv.{kind}" for path in trained for kind in ("weight", "bias")}
        return {name: value for name, value in state.items() if name not in copies}
