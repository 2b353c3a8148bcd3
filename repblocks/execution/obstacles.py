"""Why the branches of a block must run as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.rules import has_rule


def of_modules(modules: Iterable[nn.Module]) -> str | None:
    """Return what forbids to look into the branches at all, or None."""
    for module in modules:
        kind = type(module).__name__
        if any((module._forward_hooks, module._forward_pre_hooks)):
            return f"{kind} has hooks"
        if any((module._backward_hooks, module._backward_pre_hooks)):
            return f"{kind} has backward hooks"
        if not has_rule(module) or type(module).__call__ is not nn.Module.__call__:
            return f"{kind} is not one of the known operations"
    return None


def of_norms(norms: Sequence[BatchNorm]) -> str | None:
    """Return what forbids to normalise by the moments of a batch, or None."""
    if not all(norm.training for norm in norms):
        return "some BatchNorms are frozen and some are not"
    if any(norm.momentum is None or norm.running_mean is None for norm in norms):
        return "a BatchNorm has no momentum or no running statistics"
    if len({norm.affine for norm in norms}) > 1:
        return "some BatchNorms have a weight and some have none"
    return None


def of_frozen(norms: Sequence[BatchNorm]) -> str | None:
    """Return what forbids to merge the kernels of frozen norms, or None."""
    if any(norm.running_mean is None for norm in norms):
        return "a frozen BatchNorm has no running statistics"
    return None
