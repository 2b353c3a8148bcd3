"""What RepViT and the chunked RepNeXt share: their stem, and the mixer after a strided layer."""

from __future__ import annotations

from collections import OrderedDict
from typing import final

from torch import Tensor, nn

from repblocks.blocks._stage import Affine, StageBlock, hidden_channels, pointwise
from repblocks.blocks._tail import create_activation
from repblocks.models._slots import Slot


@final
class ChannelMixer(StageBlock):
    """A pointwise bottleneck added to its input.

    Args:
        dim: C.
        mlp_ratio: Hidden channels as a multiple of C.
        zero_init: Whether the last BatchNorm starts from 0, and so the bottleneck from nothing.
    """

    def __init__(self, dim: int, mlp_ratio: float, *, zero_init: bool = False) -> None:
        super().__init__()
        hidden = hidden_channels(dim, mlp_ratio)
        self.pw1: nn.Module = Affine(dim, 2, **pointwise(dim, hidden, 2))
        self.act = create_activation("gelu")
        last = pointwise(hidden, dim, 2)
        self.pw2: nn.Module = Affine(hidden, 2, **last)
        if zero_init:
            nn.init.zeros_(last["conv"].branches.norm.weight)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        y: Tensor = self.pw2(self.act(self.pw1(x)))
        return x + y


def convolutional_stem(slot: Slot, in_chans: int, width: int) -> nn.Sequential:
    """Return two 3 x 3 blocks of stride 2, the second without activation."""
    conv = slot(in_chans, width // 2, 3, 2, activation="gelu")
    return stage(conv=conv, conv2=slot(width // 2, width, 3, 2, activation=None))


def stage(**parts: nn.Module) -> nn.Sequential:
    """Return parts in a row, under their names."""
    return nn.Sequential(OrderedDict(parts))
