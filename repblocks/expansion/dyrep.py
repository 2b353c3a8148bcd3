"""Grow and cut the branches of blocks in the course of training, without changing their function.

The block that the loss depends on most gets new branches, and its main branch takes the remainder,
``W_main = (W - sum of the others) / scale of its BatchNorm``. A branch whose scales have become
small goes, and its kernel is taken in by the main one in the same way. A new branch may be that of
any block: ``"dbb.pointwise"``.

Source:
    Huang et al., DyRep, CVPR 2022, sections 3.2 to 3.4, https://arxiv.org/abs/2203.12868
    Official code: https://github.com/hunto/DyRep

Differences: any block grows whose branches are a sum or one convolution with BatchNorm, and a
branch is not grown again; the score is a sum of absolute values, as the signed sum of the official
code is zero, up to the ``eps``, for every weight before a BatchNorm, on whose scale the loss does
not depend; new branches are half as large as the kernel at first, and have statistics measured on
data, if there is any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from repblocks.algebra import is_batch_norm
from repblocks.blocks import ConvBlock
from repblocks.errors import ConfigurationError, NotFoldable
from repblocks.expansion.grown import hold_sum_, is_grown, new_branches, summed, tree_of
from repblocks.expansion.main_branch import MainBranch, main_branch, scales
from repblocks.expansion.modes import evaluating
from repblocks.expansion.solving import last_with_rows, shrink_, solve_
from repblocks.expansion.statistics import calibrate_

#: What a block grows: the branches of DyRep.
GROWN = (
    "dbb.pointwise",
    "dbb.pointwise_kxk",
    "dbb.pointwise_average",
    "acb.skeleton0",
    "acb.skeleton1",
    "repvgg.identity",
)
#: Norm of the kernel of a new branch, as a share of that of the block, an output channel.
SHARE = 0.5


def saliency(block: ConvBlock) -> Tensor:
    """Return how much the loss depends on the kernels of a block: the sum of ``|w * dL/dw|``.

    Args:
        block: In training form, with gradients; weights without one do not count.

    Raises:
        ConfigurationError: if the block is in deployed form.
    """
    weights = [p for p in tree_of(block).parameters() if p.ndim > 2]
    parts = [(w.detach() * w.grad).abs().sum() for w in weights if w.grad is not None]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def grow_(
    model: nn.Module,
    path: str = "",
    branches: Sequence[str] = GROWN,
    data: Iterable[Tensor] = (),
) -> tuple[str, ...]:
    """Add branches to a block, which computes in evaluation mode what it did.

    Args:
        model: The network, or the block itself.
        path: Of the block in it.
        branches: Each named by a conv block and one of its branches; those that the shape of the
            block does not allow, or that it has, are left out.
        data: Inputs of the model. With them training mode computes what evaluation mode does, up
            to the noise of a batch.

    Returns:
        The names that the new branches have in the block.

    Raises:
        ConfigurationError: if ``path`` is no conv block in training form, or there is no such
            branch.
        NotFoldable: if the block has no branch that takes the remainder, or one whose BatchNorm
            scales a channel by 0; the block is unchanged.
    """
    block = model.get_submodule(path)
    if not isinstance(block, ConvBlock):
        raise ConfigurationError(
            f"{path or 'The model'} must be a conv block to grow, got {type(block).__name__}."
        )
    new = new_branches(block, branches)
    if not new:
        return ()
    with torch.no_grad(), evaluating(block):
        kernel = block.equivalent_kernel(torch.float64)
    main = _take_in_(block, new)
    norms = [m for branch in new.values() for m in branch.modules() if is_batch_norm(m)]
    with torch.no_grad(), evaluating(block):
        for norm in norms:
            norm.num_batches_tracked.fill_(1)  # type: ignore[union-attr] # torch's own are counted
        for branch in new.values():
            shrink_(branch, kernel, SHARE)
    solve_(block, kernel)
    calibrate_(model, [*norms, *main.norms], data)
    solve_(block, kernel)
    return tuple(new)


def weak_branches(block: ConvBlock, threshold: float = 0.1, *, grown: bool = False) -> list[str]:
    """Return the names of the branches that are weak, of those that end in a BatchNorm.

    In training such a branch gives values of the deviation ``|gamma|``. Its strength is the mean of
    these, as a share of the largest of the block. The main branch is not among them.

    Args:
        block: In training form.
        threshold: The strength below which a branch is weak.
        grown: Whether to look at grown branches alone.

    Raises:
        ConfigurationError: if the threshold is not from 0 to 1.
        NotFoldable: as :func:`grow_`.
    """
    if isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise ConfigurationError(f"threshold must be from 0 to 1, got {threshold!r}.")
    ends = {name: last_with_rows(branch) for name, branch in summed(block).items()}
    sizes = {name: end.weight.abs().mean().item() for name, end in ends.items() if scales(end)}
    least = threshold * max(sizes.values(), default=0.0)
    others = {id(branch) for branch in changing_branch(block).others}
    return [
        name
        for name, size in sizes.items()
        if size < least and id(summed(block)[name]) in others and (is_grown(name) or not grown)
    ]


def cut_(block: ConvBlock, branches: Collection[str]) -> None:
    """Remove branches of a block, whose kernels go into the main one.

    Args:
        block: In training form.
        branches: Their names in the block; not that of the main one.

    Raises:
        ConfigurationError: if the block has no such branch beside its main one.
        NotFoldable: as :func:`grow_`.
    """
    main, own = changing_branch(block), summed(block)
    others = [name for name, branch in own.items() if any(branch is b for b in main.others)]
    unknown = sorted(set(branches) - set(others))
    if unknown:
        raise ConfigurationError(
            f"branches must be some of {', '.join(others) or 'none'}, got {', '.join(unknown)}."
        )
    with torch.no_grad(), evaluating(block):
        kernel = block.equivalent_kernel(torch.float64)
    for name in branches:
        del own[name]
    solve_(block, kernel)


def _take_in_(block: ConvBlock, new: Mapping[str, nn.Module]) -> MainBranch:
    """Add branches to the sum of a block and return its main one; undone if it has none."""
    before = block.branches
    hold_sum_(block)
    summed(block).update(new)
    try:
        return changing_branch(block)
    except NotFoldable:
        for name in new:
            del summed(block)[name]
        block.branches = before
        raise


def changing_branch(block: ConvBlock) -> MainBranch:
    """Return the main branch of a block, which takes what the others leave of its kernel.

    Args:
        block: In training form.

    Raises:
        ConfigurationError: if it is in deployed form.
        NotFoldable: if there is none, or one whose BatchNorm scales a channel by 0.
    """
    tree_of(block)
    main = main_branch(block)
    if not all(bool(norm.weight.all()) for norm in main.norms):
        raise NotFoldable(
            f"A BatchNorm of the main branch of {type(block).__name__} scales a channel by 0, so "
            "that it cannot take what other branches leave of a kernel."
        )
    return main
