"""RepLK: a large depthwise kernel between pointwise convolutions, then a pointwise bottleneck.

``x + pw2(a(L(a(pw1(N(x))))))`` with a large and a small depthwise kernel in ``L``, and then
``y + pw4(g(pw3(N(y))))``. Both BatchNorms of the input fold: nothing is padded between them and
the pointwise convolutions after them.

Source:
    Ding et al., RepLKNet, CVPR 2022, section 4.1, https://arxiv.org/abs/2203.06717
    Official code: https://github.com/DingXiaoH/RepLKNet-pytorch

Differences: the block is both of the official ones, which alternate in its network
(``mlp_ratio=None`` leaves the second out); the first BatchNorms fold, which the official code
leaves; 13 taps unless said otherwise, those of the last stage, where the first has 31; 1-d and 3-d.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import (
    Affine,
    StageBlock,
    create_drop_path,
    depthwise_block,
    hidden_channels,
    pointwise,
)
from repblocks.blocks._tail import create_activation
from repblocks.branches import Size, check_count


@final
@register_stage_block("replk")
class RepLKBlock(StageBlock):
    """BatchNorm, pointwise, large depthwise and pointwise convolutions; BatchNorm and bottleneck.

    Args:
        dim: C.
        kernel_size: Odd numbers of taps of the large kernel.
        small_kernel: Taps of the small one; None for the large one alone, as in RepLKNet-XL.
        dw_ratio: Channels of the large kernel as a multiple of C; 1.5 in RepLKNet-XL.
        mlp_ratio: Hidden channels of the bottleneck as a multiple of C; None for none.
        activation: A torch activation in lower case, around the large kernel.
        mlp_activation: That of the bottleneck.
        drop_path: Probability of leaving out each of the two paths of a sample in training.
        block: Another conv block, by name, for the place of the large kernel; None for its own.
        block_options: Options of that conv block.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the large kernel computes its branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: Size = 13,
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        mlp_ratio: float | None = 4.0,
        activation: str = "relu",
        mlp_activation: str = "gelu",
        drop_path: float = 0.0,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        wide = hidden_channels(dim, dw_ratio, "dw_ratio")
        large = depthwise_block(
            "large_kernel",
            wide,
            kernel_size,
            ndim,
            block=block,
            block_options=block_options,
            execution=execution,
            small_kernel=small_kernel,
        )
        self.mixer = nn.Sequential(
            Affine(dim, ndim, **pointwise(dim, wide, ndim, norm_first=True)),
            create_activation(activation),
            Affine(wide, ndim, large=large),
            create_activation(activation),
            Affine(wide, ndim, **pointwise(wide, dim, ndim)),
        )
        self.mlp: nn.Module | None = None
        if mlp_ratio is not None:
            hidden = hidden_channels(dim, mlp_ratio)
            self.mlp = nn.Sequential(
                Affine(dim, ndim, **pointwise(dim, hidden, ndim, norm_first=True)),
                create_activation(mlp_activation),
                Affine(hidden, ndim, **pointwise(hidden, dim, ndim)),
            )
        self.drop_path = create_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        y: Tensor = x + self.drop_path(self.mixer(x))
        return y if self.mlp is None else y + self.drop_path(self.mlp(y))
