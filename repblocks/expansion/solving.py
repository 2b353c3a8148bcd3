"""Give a block in training form the parameters with which it equals a given convolution.

The equivalent kernel is affine in the weight of a branch of one convolution, with a BatchNorm
after it or after the sum of all branches. So the other branches may hold any kernels, and one such
branch, the main one, takes what remains.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra import AffineMap, ConvKernel, apply, is_batch_norm
from repblocks.algebra.kernel import Conv
from repblocks.algebra.rules import has_rule
from repblocks.blocks import ConvBlock
from repblocks.branches import ConvShape, Sum
from repblocks.errors import ConfigurationError, NotFoldable
from repblocks.expansion.modes import evaluating
from repblocks.expansion.statistics import running_statistics

#: Norm of the kernel of each other branch, as a share of that of the whole, an output channel.
SHARE = 0.1


class MainBranch(NamedTuple):
    """The branch that takes the remainder.

    Args:
        series: The branch itself.
        conv: Its only convolution, with the kernel size and groups of the block.
        norms: What follows the convolution: its own, that of the sum, or both.
    """

    series: nn.Sequential
    conv: Conv
    norms: tuple[BatchNorm, ...]


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
        for branch in _branches(block):
            if branch is not main.series:
                _shrink_(branch, kernel)
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
    _, conv, norms = main_branch(block)
    with torch.no_grad(), evaluating(block):
        conv.weight.zero_()
        rest = block.equivalent_kernel(torch.float64)
        if rest.weight.shape != kernel.weight.shape:
            raise NotFoldable(
                f"{type(block).__name__} has a branch that reaches further than its shape: kernel "
                f"size {rest.kernel_size} instead of {kernel.kernel_size}."
            )
        like = rest.weight
        weight = kernel.weight.to(like) - rest.weight
        for norm in norms:
            _, var = running_statistics(norm)
            scale = norm.weight.to(like) / (var.to(like) + norm.eps).sqrt()
            weight = weight / _each_row(scale, weight)
        conv.weight.copy_(weight)
        # The bias of the rest holds that of the last norm, which nothing scales any more.
        last = norms[-1]
        last.bias.copy_(last.bias.to(like) - _bias(rest, like) + _bias(kernel, like))


def main_branch(block: ConvBlock) -> MainBranch:
    """Find the first branch of one convolution of the full kernel size and a BatchNorm after it.

    Raises:
        NotFoldable: if there is none.
    """
    of_sum = _norm_of_sum(block)
    for branch in _branches(block):
        before, conv, own = _parted(branch)
        is_linear = not any(True for module in before for _ in module.parameters())
        norms = own + of_sum
        if is_linear and norms and conv is not None and _takes_any_kernel(conv, block.shape):
            return MainBranch(branch, conv, norms)  # type: ignore[arg-type] # it has parts
    raise NotFoldable(
        f"{type(block).__name__} has no branch of one convolution of kernel size "
        f"{block.shape.kernel_size} and a BatchNorm, which could take what its other branches "
        "leave of a kernel."
    )


def _branches(block: ConvBlock) -> Iterable[nn.Module]:
    if block.branches is None:
        return ()
    tree = block.branches
    if _norm_of_sum(block):
        tree = tree[0]  # type: ignore[index] # a series
    return tree.values() if isinstance(tree, Sum) else (tree,)


def _norm_of_sum(block: ConvBlock) -> tuple[BatchNorm, ...]:
    """Return the BatchNorm after the sum of the branches, if that is what the block is."""
    tree = block.branches
    if isinstance(tree, nn.Sequential) and len(tree) == 2 and isinstance(tree[0], Sum):
        norm = tree[1]
        return (norm,) if _scales(norm) else ()
    return ()


def _parted(branch: nn.Module) -> tuple[list[nn.Module], nn.Module | None, tuple[BatchNorm, ...]]:
    """Return what stands before the last layer of a branch, that layer, and its BatchNorm."""
    modules = list(branch) if isinstance(branch, nn.Sequential) else []
    norms: tuple[BatchNorm, ...] = ()
    if modules and _scales(modules[-1]):
        norms = (modules[-1],)
        modules = modules[:-1]
    return modules[:-1], modules[-1] if modules else None, norms


def _takes_any_kernel(module: nn.Module, shape: ConvShape) -> TypeGuard[Conv]:
    if not isinstance(module, Conv) or not has_rule(module):
        return False
    return module.kernel_size == shape.kernel_size and module.groups == shape.groups


def _scales(module: nn.Module) -> TypeGuard[BatchNorm]:
    return is_batch_norm(module) and module.affine and module.running_var is not None


def _shrink_(branch: nn.Module, kernel: ConvKernel) -> None:
    """Make the kernel of a branch small beside the whole, by the last of it that scales channels.

    An identity without a BatchNorm stays as large as it is.
    """
    last = branch[-1] if isinstance(branch, nn.Sequential) else None
    if last is None or not (_scales(last) or (isinstance(last, Conv) and has_rule(last))):
        return
    like = torch.empty(0, dtype=torch.float64, device=kernel.weight.device)
    own = apply(branch, AffineMap.identity(kernel.in_channels), like).with_axes(len(kernel.axes))
    size = _row_norms(ConvKernel.from_affine(own, like))
    factor = torch.where(size > 0, SHARE * _row_norms(kernel) / size, 1.0)
    for parameter in last.parameters(recurse=False):
        parameter.mul_(_each_row(factor, parameter))


def _each_row(factor: Tensor, like: Tensor) -> Tensor:
    return factor.view(-1, *(1,) * (like.ndim - 1))


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
