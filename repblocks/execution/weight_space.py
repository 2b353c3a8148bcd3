"""Merge the kernels of all branches, differentiably, and run one convolution.

For branches without normalisation, or whose BatchNorms are frozen: their kernel does not depend on
the batch.

Source:
    Hu et al., OREPA, CVPR 2022, section 3.2 (block squeezing), https://arxiv.org/abs/2204.00826
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.kernel import ConvKernel
from repblocks.algebra.rules import apply
from repblocks.execution.convolving import convolve, wide
from repblocks.execution.depthwise import convolve_depthwise
from repblocks.execution.frozen_sum import read_frozen_sum
from repblocks.execution.int8 import rounded_input, rounded_weight
from repblocks.execution.reading import remembered


def run_in_weight_space(branches: nn.Module, x: Tensor, *, rounded: bool = False) -> Tensor:
    """Map ``(N, C_in, *spatial)`` by the kernel that equals the branches.

    Args:
        branches: The tree of a block.
        x: Its input.
        rounded: Round kernel and input as INT8 has them.

    Raises:
        NotFoldable: if there is none.
    """
    simple = remembered(read_frozen_sum, branches, x.ndim - 2)
    with torch.autocast(x.device.type, enabled=False):
        kernel = _from_algebra(branches, x) if simple is None else simple.kernel()
        weight = kernel.weight
        if rounded:
            x, weight = rounded_input(wide(x)), rounded_weight(wide(weight))
    y = convolve_depthwise(x, weight, kernel.bias, kernel.axes)
    return convolve(x, weight, kernel.bias, kernel.axes, kernel.groups) if y is None else y


def _from_algebra(branches: nn.Module, x: Tensor) -> ConvKernel:
    like = next(branches.parameters(), x).detach()
    value = apply(branches, AffineMap.identity(x.shape[1]).with_axes(x.ndim - 2), like)
    return ConvKernel.from_affine(value, like)
