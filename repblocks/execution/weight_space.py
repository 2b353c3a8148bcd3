"""Merge the kernels of all branches, differentiably, and run one convolution.

For branches without normalisation, or whose BatchNorms are frozen: their kernel does not depend on
the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.kernel import ConvKernel
from repblocks.algebra.rules import apply
from repblocks.execution.convolving import convolve


def run_in_weight_space(branches: nn.Module, x: Tensor) -> Tensor:
    """Map ``(N, C_in, *spatial)`` by the kernel that equals the branches."""
    like = next(branches.parameters()).detach()
    with torch.autocast(x.device.type, enabled=False):
        value = apply(branches, AffineMap.identity(x.shape[1]).with_axes(x.ndim - 2), like)
        kernel = ConvKernel.from_affine(value, like)
    return convolve(x, kernel.weight, kernel.bias, kernel.axes, kernel.groups)
