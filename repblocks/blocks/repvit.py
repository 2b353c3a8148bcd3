"""RepViT: a RepVGGDW token mixer, squeeze-and-excitation, and a pointwise bottleneck.

Source:
    Wang et al., RepViT, CVPR 2024, section 3.2, https://arxiv.org/abs/2307.09283
    Official code: https://github.com/THU-MIG/RepViT

Differences: any odd kernel size; the last BatchNorm of the bottleneck starts from 0 as in the
official code unless ``zero_init=False``; 1-d and 3-d. The strided block between two stages is none
of these: it is a plain depthwise and a plain pointwise block with a bottleneck after them.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from repblocks.algebra.normalization import is_batch_norm
from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import Affine, StageBlock, depthwise_block, hidden_channels, pointwise
from repblocks.blocks._tail import SqueezeExcite, create_activation
from repblocks.branches import Size, check_count, check_flag


@final
@register_stage_block("repvit")
class RepViTBlock(StageBlock):
    """RepVGGDW, squeeze-and-excitation, and a pointwise bottleneck added to what they give.

    Args:
        dim: C.
        kernel_size: Odd numbers of taps of the token mixer.
        mlp_ratio: Hidden channels as a multiple of C.
        se: Hidden channels of squeeze-and-excitation as a fraction of C; None for none, as in every
            second block of RepViT, whose others have 0.25.
        legacy: Whether the token mixer is that of RepViT-M1 to M3.
        zero_init: Whether the last BatchNorm starts from 0, and so the bottleneck from nothing.
        activation: A torch activation in lower case.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the token mixer computes its branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: Size = 3,
        mlp_ratio: float = 2.0,
        se: float | None = None,
        legacy: bool = False,
        zero_init: bool = True,
        activation: str = "gelu",
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_flag("zero_init", zero_init)
        mixer = depthwise_block(
            "repvgg_dw",
            dim,
            kernel_size,
            ndim,
            execution=execution,
            legacy=legacy,
        )
        self.token_mixer: nn.Module = Affine(dim, ndim, mixer=mixer)
        self.se = nn.Identity() if se is None else SqueezeExcite(dim, se, ndim)
        hidden = hidden_channels(dim, mlp_ratio)
        self.pw1: nn.Module = Affine(dim, ndim, **pointwise(dim, hidden, ndim))
        self.act = create_activation(activation)
        self.pw2: nn.Module = Affine(hidden, ndim, **pointwise(hidden, dim, ndim))
        if zero_init:
            for norm in filter(is_batch_norm, self.pw2.modules()):
                nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        y: Tensor = self.se(self.token_mixer(x))
        return y + self.pw2(self.act(self.pw1(y)))
