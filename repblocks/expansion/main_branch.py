"""The branch of a block that can take any kernel of its shape, and the weight with which it does.

It is a convolution of the kernel size and groups of the block, that only pointwise convolutions and
scales stand around, and a BatchNorm after it, of its own or after the sum of all branches; in a
block without BatchNorms, the last convolution or scale has a bias instead. Where the series before
the last pointwise convolution is depthwise, as in DO-Conv, that convolution mixes filters of each
channel, and takes any kernel that the filters span.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra import AffineMap, apply, is_batch_norm
from repblocks.algebra.affine import evaluated_weight
from repblocks.algebra.kernel import Conv
from repblocks.algebra.rules import has_rule
from repblocks.blocks import ConvBlock
from repblocks.branches import ConvShape, Scale, Sum
from repblocks.errors import NotFoldable


@dataclass(frozen=True)
class MainBranch:
    """The branch that takes what the others leave of a kernel.

    Args:
        conv: Whose weight is set.
        norms: What follows: a norm of its own, that of the sum, both, or none.
        others: The branches beside it.
        before: What comes before the convolution.
        after: Pointwise convolutions and scales between the convolution and the norm.
    """

    conv: Conv
    norms: tuple[BatchNorm, ...]
    others: tuple[nn.Module, ...]
    before: tuple[nn.Module, ...] = ()
    after: tuple[nn.Module, ...] = ()

    @property
    def last(self) -> nn.Module:
        """What has the bias that adds to the output."""
        return (self.conv, *self.after, *self.norms)[-1]

    def take_(self, weight: Tensor) -> None:
        """Set the convolution so that the branch computes a kernel, before the norm.

        Args:
            weight: ``(C_out, C_in // groups, *k)``, in the dtype to compute in.
        """
        groups = self.conv.groups
        parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        filters = [module for module in self.before if isinstance(module, Sum)]
        if filters:
            parts = _spanned(parts, filters[0], weight)
        else:
            left = _matrix(self.after, groups, weight)
            right = _matrix(self.before, groups, weight)
            if left is not None:
                parts = torch.einsum("gmo,goct->gmct", torch.linalg.pinv(left), parts)
            if right is not None:
                parts = torch.einsum("goct,gcm->gomt", parts, torch.linalg.pinv(right))
        self.conv.weight.copy_(parts.reshape(self.conv.weight.shape))


def main_branch(block: ConvBlock) -> MainBranch:
    """Find the first branch that can take any kernel.

    Raises:
        NotFoldable: if there is none.
    """
    found = next(chain(_normed(block), _of_convs(block)), None)
    if found is None:
        raise NotFoldable(
            f"{type(block).__name__} has no branch of one convolution of kernel size "
            f"{block.shape.kernel_size}, pointwise ones around it at most, and a BatchNorm with a "
            "scale or, without BatchNorms, a bias, which could take what its other branches leave "
            "of a kernel."
        )
    return found


def _normed(block: ConvBlock) -> Iterator[MainBranch]:
    """Find branches that end in a convolution, with a norm of their own or one after the sum."""
    tree: Any = block.branches
    of_sum: tuple[BatchNorm, ...] = ()
    if isinstance(tree, nn.Sequential) and len(tree) == 2 and isinstance(tree[0], Sum):
        norm = tree[1]
        if scales(norm):
            of_sum = (norm,)
            tree = tree[0]
    branches = list(tree.values()) if isinstance(tree, Sum) else [tree]
    for branch in branches:
        before, conv, own = _parted(branch)
        is_linear = not any(True for module in before for _ in module.parameters())
        if is_linear and own + of_sum and _takes_any_kernel(conv, block.shape):
            others = tuple(b for b in branches if b is not branch and b is not None)
            yield MainBranch(conv, own + of_sum, others)


def _parted(branch: nn.Module | None) -> tuple[list[nn.Module], Any, tuple[BatchNorm, ...]]:
    """Return what stands before the last layer of a branch, that layer, and its BatchNorm."""
    modules = list(branch) if isinstance(branch, nn.Sequential) else []
    norms: tuple[BatchNorm, ...] = ()
    if modules and scales(norm := modules[-1]):
        norms, modules = (norm,), modules[:-1]
    return modules[:-1], modules[-1] if modules else None, norms


def _of_convs(block: ConvBlock) -> Iterator[MainBranch]:
    """Find branches of several layers, with a norm after the sum and no other, or none at all."""
    kernel: Any = block.branches
    norms: tuple[BatchNorm, ...] = ()
    if isinstance(kernel, nn.Sequential) and len(kernel) == 2 and scales(kernel[1]):
        kernel, norms = kernel[0], (kernel[1],)
    if any(map(is_batch_norm, kernel.modules())):
        return
    *outside, last = _steps(kernel)
    branches = list(last.values()) if isinstance(last, Sum) else [nn.Sequential(last)]
    for branch in branches:
        steps = [*outside, *_steps(branch)]
        others = tuple(b for b in branches if b is not branch)
        for place, conv in enumerate(steps):
            before, after = _with_weights(steps[:place]), _with_weights(steps[place + 1 :])
            if _mixes(conv, before, after, block.shape):
                found = MainBranch(conv, norms, others, before, after)
                if found.last.bias is not None:
                    yield found


def _steps(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential):
        return [step for child in module for step in _steps(child)]
    return [module]


def _with_weights(steps: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    return tuple(step for step in steps if any(True for _ in step.parameters()))


def _mixes(
    module: nn.Module,
    before: tuple[nn.Module, ...],
    after: tuple[nn.Module, ...],
    shape: ConvShape,
) -> TypeGuard[Conv]:
    if _takes_any_kernel(module, shape):
        return all(_is_pointwise(step, shape.groups) for step in (*before, *after))
    if after or len(before) != 1 or not _is_pointwise(module, shape.groups):
        return False
    return isinstance(before[0], Sum) and not isinstance(module, Scale)


def _takes_any_kernel(module: nn.Module | None, shape: ConvShape) -> TypeGuard[Conv]:
    if not isinstance(module, Conv) or not has_rule(module):
        return False
    return module.kernel_size == shape.kernel_size and module.groups == shape.groups


def _is_pointwise(module: nn.Module, groups: int) -> bool:
    if not has_rule(module):
        return False
    if isinstance(module, Scale):
        return True
    if not isinstance(module, Conv):
        return False
    return set(module.kernel_size) == {1} and module.groups == groups


def scales(module: nn.Module | None) -> TypeGuard[BatchNorm]:
    """Tell whether a module normalises by running statistics, and has a weight and a bias."""
    return (
        module is not None
        and is_batch_norm(module)
        and module.affine
        and module.running_var is not None
    )


def _matrix(steps: Iterable[nn.Module], groups: int, like: Tensor) -> Tensor | None:
    """Return pointwise steps as a matrix for each group, ``(groups, outputs, inputs)``."""
    product: Tensor | None = None
    for step in steps:
        weight = next(step.parameters()).to(like)
        if isinstance(step, Scale):
            own = torch.diag_embed(weight.view(groups, -1))
        else:
            own = weight.view(groups, -1, weight.shape[1])
        product = own if product is None else own @ product
    return product


def _spanned(parts: Tensor, filters: Sum, like: Tensor) -> Tensor:
    """Return in what shares the filters of each channel make up its kernels."""
    channels = parts.shape[0] * parts.shape[2]
    own = evaluated_weight(apply(filters, AffineMap.identity(channels), like))
    inverse = torch.linalg.pinv(own.reshape(*parts.shape[0:3:2], -1, parts.shape[-1]))
    return torch.einsum("goct,gctm->gocm", parts, inverse)
