"""RepGhost: pointwise convolutions, each with a depthwise kernel that is summed, not concatenated.

A module is a pointwise convolution with BatchNorm and activation, then the sum of a depthwise
kernel with BatchNorm and of a BatchNorm, then the activation: the sum is one depthwise kernel. The
bottleneck is two modules, the second without activations, squeeze-and-excitation in between, and
the input added.

Source:
    Chen et al., RepGhost: A Hardware-Efficient Ghost Module via Re-parameterization, 2022,
    section 3, https://arxiv.org/abs/2211.06088
    Official code: https://github.com/ChengpengChen/RepGhost

Differences: the pointwise convolutions fold with their BatchNorm, too; any odd kernel size. Stride
and a change of channels are left to the layers between two stages. In the second module the
pointwise convolution and the depthwise kernel are both affine, but stay two: one dense kernel of
both would cost more.
"""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import Affine, StageBlock, depthwise_block, hidden_channels, pointwise
from repblocks.blocks._tail import SqueezeExcite, create_activation
from repblocks.branches import Size, Sum, check_count, check_flag


@final
@register_stage_block("rep_ghost")
class RepGhostBlock(StageBlock):
    """Two modules of a pointwise convolution and a folded depthwise kernel, added to the input.

    Args:
        dim: C.
        mlp_ratio: Channels between the modules as a multiple of C.
        kernel_size: Odd numbers of taps of the depthwise kernels.
        use_norm_branch: Whether a BatchNorm stands beside the depthwise kernel.
        use_identity: Whether what the pointwise convolution gives is added as it is, too.
        se: Hidden channels of squeeze-and-excitation as a fraction of the channels between the
            modules; None for none.
        activation: A torch activation in lower case.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the depthwise kernels compute their branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_ratio: float = 2.0,
        kernel_size: Size = 3,
        use_norm_branch: bool = True,
        use_identity: bool = False,
        se: float | None = None,
        activation: str = "relu",
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_flag("use_norm_branch", use_norm_branch)
        check_flag("use_identity", use_identity)
        hidden = hidden_channels(dim, mlp_ratio)
        options: dict[str, Any] = {
            "kernel_size": kernel_size,
            "use_norm_branch": use_norm_branch,
            "use_identity": use_identity,
            "ndim": ndim,
            "execution": execution,
        }
        self.pw1: nn.Module = Affine(dim, ndim, **pointwise(dim, hidden, ndim))
        self.act1 = create_activation(activation)
        self.cheap1: nn.Module = cheap_operation(hidden, **options)
        self.act2 = create_activation(activation)
        self.se = nn.Identity() if se is None else SqueezeExcite(hidden, se, ndim)
        self.pw2: nn.Module = Affine(hidden, ndim, **pointwise(hidden, dim, ndim))
        self.cheap2: nn.Module = cheap_operation(dim, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        y = self.act2(self.cheap1(self.act1(self.pw1(x))))
        y = self.cheap2(self.pw2(self.se(y)))
        return x + y


def cheap_operation(
    dim: int,
    *,
    kernel_size: Size = 3,
    use_norm_branch: bool = True,
    use_identity: bool = False,
    ndim: int = 2,
    execution: str = "auto",
) -> Affine:
    """Return the depthwise kernel of a module, with what is summed with it.

    Args:
        dim: C.
        kernel_size: Odd numbers of taps.
        use_norm_branch: Whether a BatchNorm stands beside the kernel.
        use_identity: Whether the input is added as it is, too.
        ndim: Number of spatial axes.
        execution: How the branches are computed in training.
    """
    name: str = "plain"
    options: dict[str, Any] = {}
    if use_norm_branch:
        name, options = "mobileone", {"num_conv_branches": 1, "use_scale_branch": False}
    block = depthwise_block(name, dim, kernel_size, ndim, execution=execution, **options)
    branches = Sum({"normed": block})
    if use_identity:
        branches["identity"] = nn.Identity()
    return Affine(dim, ndim, sum=branches)
