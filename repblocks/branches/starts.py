"""What the scales of the last BatchNorms of branches start from."""

from __future__ import annotations

from torch import nn

from repblocks.algebra.normalization import is_batch_norm
from repblocks.branches.nodes import Sum
from repblocks.branches.options import check_factor, check_flag
from repblocks.errors import ConfigurationError


def start_scales_(tree: nn.Module, first_scale: float = 1.0, single_start: bool = False) -> None:
    """Set the scales of the BatchNorms that branches end in, or of the one after their sum.

    Args:
        tree: A sum whose first branch is the kernel itself, or that and one BatchNorm.
        first_scale: What the scales start from.
        single_start: Whether those of all branches but the first start from 0 instead: in the
            beginning the block is one kernel.

    Raises:
        ConfigurationError: if ``first_scale`` is no number above 0, or ``single_start`` neither
            true nor false, or true where the branches have no BatchNorms of their own.
    """
    check_factor("first_scale", first_scale)
    check_flag("single_start", single_start)
    if single_start and not isinstance(tree, Sum):
        raise ConfigurationError(
            "single_start must be false where post_norm leaves no branch a BatchNorm of its own, "
            "got True."
        )
    branches = list(tree.values()) if isinstance(tree, Sum) else [tree]
    for number, branch in enumerate(branches):
        *_, last = filter(is_batch_norm, branch.modules())
        nn.init.constant_(last.weight, 0.0 if single_start and number else first_scale)
