"""One BatchNorm after the sum of the branches, in the place of one at the end of each.

``N(sum of W_i x)`` folds as the kernel of the sum, then the norm: ``s * sum W_i`` and
``beta + s * (sum b_i - mean)``, with ``s = gamma / sqrt(var + eps)``.

Source:
    Chu et al., Make RepVGG Greater Again: A Quantization-aware Approach, AAAI 2024, section 3,
    https://arxiv.org/abs/2212.01593
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from torch import nn

from repblocks.algebra.normalization import is_batch_norm
from repblocks.branches.nodes import Sum
from repblocks.branches.options import check_flag
from repblocks.branches.shape import ConvShape


def normed_after_sum(branches: Sum, shape: ConvShape, keep: Collection[str] = ()) -> nn.Sequential:
    """Return the branches with one BatchNorm after their sum.

    Args:
        branches: Each with its own BatchNorm at its end, or without.
        shape: Of the block.
        keep: Names of the branches that keep their own BatchNorm.
    """
    kept = {
        name: branch if name in keep else without_norm(branch) for name, branch in branches.items()
    }
    return nn.Sequential(OrderedDict(sum=Sum(kept), norm=shape.norm()))


def one_kernel(shape: ConvShape, branches: nn.Module, norm: bool) -> nn.Module:
    """Return branches without norms, and one BatchNorm after them unless ``norm`` is false.

    Raises:
        ConfigurationError: if ``norm`` is neither true nor false.
    """
    check_flag("norm", norm)
    return nn.Sequential(OrderedDict(kernel=branches, norm=shape.norm())) if norm else branches


def without_norm(branch: nn.Module) -> nn.Module:
    """Return a branch less the BatchNorm that it ends in."""
    if not isinstance(branch, nn.Sequential):
        return branch
    *kept, (name, last) = branch.named_children()
    if not is_batch_norm(last):
        kept.append((name, without_norm(last)))
    return nn.Sequential(OrderedDict(kept)) if kept else nn.Identity()
