"""Give a block in training form the parameters with which it equals a given convolution.

The equivalent kernel is affine in the weight of a convolution that no nonlinearity follows. So the
other branches may hold any kernels, and one of them, the main one, takes what remains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repblocks.algebra import AffineMap, ConvKernel, apply, is_batch_norm
from repblocks.algebra.kernel import Conv
from repblocks.blocks import ConvBlock
from repblocks.branches import ConvShape, Scale
from repblocks.errors import ConfigurationError, NotFoldable
from repblocks.expansion.main_branch import main_branch, scales
from repblocks.expansion.modes import evaluating
from repblocks.expansion.statistics import running_statistics

#: Norm of the kernel of each other branch, as a share of that of the whole, an output channel.
SHARE = 0.1


def set_to_kernel_(block: ConvBlock, kernel: ConvKernel) -> None:
    """Give a new block the parameters with which its branches compute ``kernel`` in evaluation.

    The branches keep the random kernels that they were made with, but small; the main one takes
    what remains: ``W_main = (W - sum of the others) / scale of its BatchNorms``, in float64, cast
    last. The tail of the block is not looked at.

    Args:
        block: In training form, in any mode.
        kernel: Of the block's shape, in any dtype.

    Raises:
        ConfigurationError: if the shapes differ.
        NotFoldable: if the block has no branch that can take the remainder.
    """
    _check_shape(block.shape, kernel)
    main = main_branch(block)
    with torch.no_grad(), evaluating(block):
        for branch in main.others:
            shrink_(branch, kernel)
        for norm in filter(is_batch_norm, block.modules()):
            if norm.num_batches_tracked is not None:
                # The statistics are meant to be as they are: nothing shall warn of them.
                norm.num_batches_tracked.fill_(1)
        for norm in main.norms:
            _, var = running_statistics(norm)
            norm.weight.copy_((var + norm.eps).sqrt())
    solve_(block, kernel)


def solve_(block: ConvBlock, kernel: ConvKernel) -> None:
    """Change only the main branch, so that the block computes ``kernel`` in evaluation mode.

    Args:
        block: In training form, in any mode; no BatchNorm of its main branch scales a channel by 0.
        kernel: Of the block's shape, in any dtype.

    Raises:
        NotFoldable: if a branch reaches further than the kernel.
    """
    main = main_branch(block)
    with torch.no_grad(), evaluating(block):
        main.conv.weight.zero_()
        rest = block.equivalent_kernel(torch.float64)
        if rest.weight.shape != kernel.weight.shape:
            raise NotFoldable(
                f"{type(block).__name__} has a branch that reaches further than its shape: kernel "
                f"size {rest.kernel_size} instead of {kernel.kernel_size}."
            )
        like = rest.weight
        weight = kernel.weight.to(like) - rest.weight
        for norm in main.norms:
            _, var = running_statistics(norm)
            scale = norm.weight.to(like) / (var.to(like) + norm.eps).sqrt()
            weight = weight / scale.view(-1, *(1,) * (weight.ndim - 1))
        main.take_(weight)
        # The bias of what was made holds that of the last step, which nothing scales any more.
        made = block.equivalent_kernel(torch.float64)
        last: Any = main.last
        last.bias.copy_(last.bias.to(like) - _bias(made, like) + _bias(kernel, like))


def shrink_(branch: nn.Module, kernel: ConvKernel, share: float = SHARE) -> None:
    """Make the kernel of a branch small beside the whole, by what it ends in.

    Args:
        branch: Of the shape of the whole, in evaluation mode.
        kernel: The whole.
        share: Norm of the kernel of the branch as a share of that of the whole.
    """
    last = last_with_rows(branch)
    if last is None:
        return
    like = torch.empty(0, dtype=torch.float64, device=kernel.weight.device)
    own = apply(branch, AffineMap.identity(kernel.in_channels), like).with_axes(len(kernel.axes))
    size = _row_norms(ConvKernel.from_affine(own, like))
    factor = torch.where(size > 0, share * _row_norms(kernel) / size, 1.0)
    for parameter in last.parameters():
        parameter.mul_(factor.view(-1, *(1,) * (parameter.ndim - 1)))


def last_with_rows(branch: nn.Module) -> nn.Module | None:
    """Return the last step of a branch, if its parameters have a row for each output channel."""
    while isinstance(branch, nn.Sequential) and len(branch) > 0:
        branch = branch[-1]
    return branch if scales(branch) or isinstance(branch, Scale | Conv) else None


def _row_norms(kernel: ConvKernel) -> Tensor:
    return kernel.weight.double().flatten(1).norm(dim=1)


def _bias(kernel: ConvKernel, like: Tensor) -> Tensor:
    return like.new_zeros(kernel.out_channels) if kernel.bias is None else kernel.bias.to(like)


def _check_shape(shape: ConvShape, kernel: ConvKernel) -> None:
    given = (kernel.in_channels, kernel.out_channels, kernel.groups, kernel.axes)
    wanted = (shape.in_channels, shape.out_channels, shape.groups, shape.axes)
    if given != wanted or kernel.padding_mode != "zeros":
        raise ConfigurationError(
            f"The kernel must have the shape of the block, {shape}, got {given}."
        )
