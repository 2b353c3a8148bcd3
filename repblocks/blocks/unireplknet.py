"""UniRepLKNet: dilated reparam, squeeze-and-excitation, and a bottleneck with response norm.

``x + s * N(W2(G(a(W1(SE(N(D(x))))))))`` with global response normalisation ``G``. The summand of
``G`` goes through the last pointwise convolution into its bias; its factors depend on the input,
and stay.

Source:
    Ding et al., UniRepLKNet, CVPR 2024, section 3.1, https://arxiv.org/abs/2311.15599
    Woo et al., ConvNeXt V2, CVPR 2023, section 3.3 (GRN), https://arxiv.org/abs/2301.00808
    Official code: https://github.com/AILab-CVC/UniRepLKNet

Differences: the linear layers are pointwise convolutions, so that nothing is permuted; kernels of
3 and 5 taps are a plain depthwise convolution, as in the official code, unless
``dilated_from`` is smaller; kernels of any odd size; 1-d and 3-d.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import (
    Affine,
    StageBlock,
    create_drop_path,
    create_layer_scale,
    depthwise_block,
    hidden_channels,
    pointwise,
)
from repblocks.blocks._tail import SqueezeExcite, create_activation
from repblocks.branches import ConvShape, Shift, Size, check_count


class ResponseNorm(nn.Module):
    """Scale each channel by its part in the norm of all, without the summand.

    With the norm ``g`` of a channel over the positions, a value is multiplied by
    ``1 + gamma * g / (mean of g + eps)``.

    Args:
        channels: C.
        eps: Added to the mean.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Set all factors to 1."""
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``(N, C, *spatial)``."""
        axes = tuple(range(2, x.ndim))
        norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        share = norm / (norm.mean(1, keepdim=True) + self.eps)
        return x * (1 + self.gamma.view(-1, *(1,) * len(axes)) * share)


@final
@register_stage_block("unireplknet")
class UniRepLKNetBlock(StageBlock):
    """Dilated reparam or plain kernel, squeeze-and-excitation, bottleneck with response norm.

    Args:
        dim: C.
        kernel_size: Odd numbers of taps.
        dilated_from: Smallest number of taps that has dilated kernels beside it.
        mlp_ratio: Hidden channels as a multiple of C.
        se: Hidden channels of squeeze-and-excitation as a fraction of C; None for none.
        layer_scale: First value of the scales; None for no scales.
        activation: A torch activation in lower case.
        drop_path: Probability of leaving out the main path of a sample in training.
        block: Another conv block, by name, for the depthwise place; None for its own.
        block_options: Options of that conv block, or of the dilated one.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the kernels compute their branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: Size = 13,
        dilated_from: int = 7,
        mlp_ratio: float = 4.0,
        se: float | None = 0.25,
        layer_scale: float | None = 1e-6,
        activation: str = "gelu",
        drop_path: float = 0.0,
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("dilated_from", dilated_from)
        shape = ConvShape.create(dim, dim, kernel_size, groups=dim, ndim=ndim)
        is_dilated = block is None and max(shape.kernel_size) >= dilated_from
        # What other blocks have as their last BatchNorm, the dilated one has after its sum.
        kernels = depthwise_block(
            "dilated_reparam" if is_dilated else "plain",
            dim,
            kernel_size,
            ndim,
            block=block,
            block_options=block_options if is_dilated or block is not None else None,
            execution=execution,
        )
        after = {"norm": shape.norm()} if is_dilated else {}
        self.mixer: nn.Module = Affine(dim, ndim, kernels=kernels, **after)
        self.se = nn.Identity() if se is None else SqueezeExcite(dim, se, ndim)
        hidden = hidden_channels(dim, mlp_ratio)
        up = ConvShape.create(dim, hidden, 1, ndim=ndim).conv(bias=True)
        self.pw1: nn.Module = Affine(dim, ndim, conv=up)
        self.act = create_activation(activation)
        self.grn = ResponseNorm(hidden)
        scale = create_layer_scale(dim, layer_scale)
        self.pw2: nn.Module = Affine(
            hidden, ndim, shift=Shift(hidden), **pointwise(hidden, dim, ndim), **scale
        )
        self.drop_path = create_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        y = self.pw1(self.se(self.mixer(x)))
        return x + self.drop_path(self.pw2(self.grn(self.act(y))))
