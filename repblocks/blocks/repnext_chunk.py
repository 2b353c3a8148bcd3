"""Chunked RepNeXt: chunks under depthwise kernels of several sizes, and a pointwise bottleneck.

Source:
    Zhao et al., RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization, 2024,
    section 3, https://arxiv.org/abs/2406.16004
    Official code: https://github.com/suous/RepNeXt

``x + pw2(a(pw1(N(chunks(x)))))``. It has nothing to do with the block ``repnext`` of this library.

Differences: the BatchNorm ``N`` after the chunks folds into the pointwise convolution after it,
where the official code leaves one in each block; as in ``chunk_conv``, the channels need not be a
multiple of 4, and there are 1-d and 3-d forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import (
    Affine,
    StageBlock,
    create_drop_path,
    hidden_channels,
    pointwise,
)
from repblocks.blocks._tail import create_activation
from repblocks.blocks.chunk_conv import chunked


@final
@register_stage_block("repnext_chunk")
class RepNeXtChunkBlock(StageBlock):
    """Four chunks (identity, 3, 7 and 11 taps) and a pointwise bottleneck, added to the input.

    Args:
        dim: C, at least 4.
        kernel_sizes: Odd numbers of taps of the small, the medium and the long kernel.
        long_bias: Whether the kernels of the long series have biases.
        mlp_ratio: Hidden channels as a multiple of C.
        activation: A torch activation in lower case.
        drop_path: Probability of leaving out the main path of a sample in training.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the chunks compute their branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_sizes: Sequence[int] = (3, 7, 11),
        long_bias: bool = True,
        mlp_ratio: float = 2.0,
        activation: str = "gelu",
        drop_path: float = 0.0,
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        self.chunks = chunked(dim, kernel_sizes, long_bias, ndim, execution)
        hidden = hidden_channels(dim, mlp_ratio)
        self.pw1: nn.Module = Affine(dim, ndim, **pointwise(dim, hidden, ndim, norm_first=True))
        self.act = create_activation(activation)
        self.pw2: nn.Module = Affine(hidden, ndim, **pointwise(hidden, dim, ndim))
        self.drop_path = create_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        y: Tensor = self.pw2(self.act(self.pw1(self.chunks(x))))
        return x + self.drop_path(y)
