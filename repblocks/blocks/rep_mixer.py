"""RepMixer: a token mixer that folds into one depthwise convolution, and a convolutional MLP.

``x + s * (M(x) - N(x))``, with a MobileOne block ``M``, a BatchNorm ``N`` and a scale ``s`` for
each channel, is the kernel ``I + s * (W_M - W_N)`` with the bias ``s * (b_M - b_N)``. The MLP is a
depthwise convolution with BatchNorm, and two pointwise ones with an activation in between; it is
scaled and added to its input. Its scale folds into the last convolution.

Source:
    Vasu et al., FastViT, ICCV 2023, section 3.2.1, https://arxiv.org/abs/2303.14189
    Official code: https://github.com/apple/ml-fastvit

Differences: ``mlp_ratio=None`` gives the token mixer alone; no dropout inside the MLP; several
k x k branches if wished; 1-d and 3-d.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import (
    Affine,
    StageBlock,
    create_drop_path,
    create_layer_scale,
    depthwise_block,
    hidden_channels,
)
from repblocks.blocks._tail import create_activation
from repblocks.branches import ConvShape, Negate, Size, Sum, check_count


@final
@register_stage_block("rep_mixer")
class RepMixerBlock(StageBlock):
    """MobileOne less BatchNorm as token mixer, depthwise k x k and a pointwise bottleneck.

    Args:
        dim: C.
        kernel_size: Odd numbers of taps of the token mixer.
        mlp_kernel_size: Odd numbers of taps of the depthwise convolution of the MLP.
        mlp_ratio: Hidden channels of the MLP as a multiple of C; None for no MLP.
        layer_scale: First value of the scales; None for no scales.
        num_conv_branches: Parallel k x k branches of the token mixer.
        activation: A torch activation in lower case.
        drop_path: Probability of leaving out the MLP of a sample in training.
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
        mlp_kernel_size: Size = 7,
        mlp_ratio: float | None = 4.0,
        layer_scale: float | None = 1e-5,
        num_conv_branches: int = 1,
        activation: str = "gelu",
        drop_path: float = 0.0,
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        mixer = depthwise_block(
            "mobileone",
            dim,
            kernel_size,
            ndim,
            execution=execution,
            num_conv_branches=num_conv_branches,
        )
        norm = ConvShape.create(dim, dim, 1, ndim=ndim).norm()
        minus = nn.Sequential(norm, Negate())
        scale = create_layer_scale(dim, layer_scale)
        scaled = nn.Sequential(Sum({"mixer": mixer, "norm": minus}), *scale.values())
        self.token_mixer: nn.Module = Affine(
            dim, ndim, sum=Sum({"identity": nn.Identity(), "mixed": scaled})
        )
        self.mlp: nn.Module | None = None
        if mlp_ratio is not None:
            hidden = hidden_channels(dim, mlp_ratio)
            self.mlp = conv_mlp(dim, hidden, mlp_kernel_size, layer_scale, activation, ndim)
        self.drop_path = create_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        y: Tensor = self.token_mixer(x)
        return y if self.mlp is None else y + self.drop_path(self.mlp(y))


def conv_mlp(
    dim: int, hidden: int, kernel_size: Size, scale: float | None, activation: str, ndim: int
) -> nn.Sequential:
    """Return a depthwise convolution with BatchNorm and a scaled pointwise bottleneck.

    Args:
        dim: C.
        hidden: Channels of the bottleneck.
        kernel_size: Odd numbers of taps of the depthwise convolution.
        scale: First value of the scale of each channel; None for none.
        activation: A torch activation in lower case.
        ndim: Number of spatial axes.
    """
    depthwise = depthwise_block("plain", dim, kernel_size, ndim)
    up = ConvShape.create(dim, hidden, 1, ndim=ndim).conv(bias=True)
    down = ConvShape.create(hidden, dim, 1, ndim=ndim).conv(bias=True)
    mlp = nn.Sequential()
    mlp.add_module("conv", Affine(dim, ndim, conv=depthwise))
    mlp.add_module("pw1", Affine(dim, ndim, conv=up))
    mlp.add_module("act", create_activation(activation))
    mlp.add_module("pw2", Affine(hidden, ndim, conv=down, **create_layer_scale(dim, scale)))
    return mlp
