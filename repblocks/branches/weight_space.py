"""Branches without a norm of their own, trained as the one kernel that they equal.

Source:
    Hu et al., OREPA, CVPR 2022, section 3.2 (block squeezing), https://arxiv.org/abs/2204.00826
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.kernel import ConvKernel
from repblocks.algebra.rules import apply, has_rule, rule
from repblocks.branches.options import check_flag
from repblocks.branches.shape import ConvShape


class WeightSpace(nn.Module):
    """Branches whose kernels are summed and composed, differentiably, before one convolution.

    In training only: evaluation runs the branches as they are, the truth that a fold is compared
    with. So does compiled code, which cannot follow the index arithmetic of the kernels, and so do
    branches with hooks, or with modules put into them that the table of rules does not know.

    Args:
        shape: What they replace.
        branches: Convolutions, pads, scales, fixed filters and sums of them.
    """

    def __init__(self, shape: ConvShape, branches: nn.Module) -> None:
        super().__init__()
        self.in_channels = shape.in_channels
        self.ndim = shape.ndim
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C_in, *spatial)`` to ``(N, C_out, *spatial)``."""
        if not self.training or torch.compiler.is_compiling() or not self._is_known():
            y: Tensor = self.branches(x)
            return y
        with torch.autocast(x.device.type, enabled=False):
            kernel = self.kernel()
        return kernel(x)

    def kernel(self) -> ConvKernel:
        """Return the kernel of the branches, in the dtype of the parameters."""
        like = next(self.parameters()).detach()
        start = AffineMap.identity(self.in_channels).with_axes(self.ndim)
        return ConvKernel.from_affine(apply(self.branches, start, like), like)

    def _is_known(self) -> bool:
        named = self.branches.named_modules()
        # What parametrizes a weight is part of it.
        modules = [module for path, module in named if "parametrizations" not in path]
        return all(has_rule(module) and not _has_hooks(module) for module in modules)


@rule(WeightSpace)
def _weight_space(module: WeightSpace, value: AffineMap, like: Tensor | None) -> AffineMap:
    return apply(module.branches, value, like)


def one_kernel(shape: ConvShape, branches: nn.Module, norm: bool) -> nn.Module:
    """Return branches in weight space, and a norm of their sum after them.

    Raises:
        ConfigurationError: if ``norm`` is neither true nor false.
    """
    check_flag("norm", norm)
    kernel = WeightSpace(shape, branches)
    if not norm:
        return kernel
    series = nn.Sequential()
    series.add_module("kernel", kernel)
    series.add_module("norm", shape.norm())
    return series


def _has_hooks(module: nn.Module) -> bool:
    forward = (module._forward_hooks, module._forward_pre_hooks)
    return any((*forward, module._backward_hooks, module._backward_pre_hooks))
