"""How a block in training form computes its branches: as they are, merged, or in weight space.

All but ``"int8"`` compute the same function, up to rounding, with the same statistics and
gradients. In evaluation mode a block always runs its branches as they are: they are the truth that
a fold is compared with.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.kernel import Conv
from repblocks.algebra.normalization import is_batch_norm
from repblocks.errors import ConfigurationError, NotFoldable
from repblocks.execution import obstacles
from repblocks.execution.dense import run_dense
from repblocks.execution.dense_reading import split_dense
from repblocks.execution.merged import run_merged
from repblocks.execution.normed_sum import normed, normed_sum, tailed
from repblocks.execution.profit import (
    dense_pays,
    may_pay,
    merging_pays,
    one_pass_pays,
    weight_space_pays,
)
from repblocks.execution.reading import before_norm, remembered, split
from repblocks.execution.synchronising import process_group
from repblocks.execution.weight_space import run_in_weight_space

EXECUTIONS = ("auto", "branchwise", "merged", "weight_space")
#: Another function: the kernel and the input are rounded, for quantization-aware training.
ROUNDED = "int8"


def check_execution(execution: str) -> None:
    """Check the name of an execution.

    Raises:
        ConfigurationError: if there is none of that name.
    """
    known = (*EXECUTIONS, ROUNDED)
    if execution not in known:
        raise ConfigurationError(f"execution must be one of {', '.join(known)}, got {execution!r}.")


def execute(
    branches: nn.Module, x: Tensor, execution: str, tail: nn.Module | None = None
) -> Tensor:
    """Map ``(N, C_in, *spatial)`` to the tail of the branches' sum, ``(N, C_out, *spatial)``.

    Args:
        branches: The tree of a block.
        x: Its input.
        execution: One of ``EXECUTIONS``, or ``ROUNDED``. ``"auto"`` decides by shape and device,
            never by values. What cannot be done runs branch by branch; for any but ``"auto"`` with
            a warning.
        tail: What is done with the sum, if anything.
    """
    if execution == "auto" and branches.training:
        execution = _chosen(branches, x)
    if execution == "branchwise" or not branches.training:
        return tailed(branches(x), tail)
    done, reason = _together(branches, x, execution, tail)
    if done is not None:
        return done
    if execution != "auto":
        warnings.warn(_fallback(branches, execution, reason), stacklevel=3)
    return tailed(branches(x), tail)


def _fallback(branches: nn.Module, execution: str, reason: str | None) -> str:
    first = next((module for module in branches.modules() if isinstance(module, Conv)), None)
    block = "" if first is None else f" The first kernel of the block is {first}."
    return f"execution={execution} runs branchwise here: {reason}.{block}"


def _chosen(branches: nn.Module, x: Tensor) -> str:
    """Return what ``"auto"`` is before the branches are looked at closely."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor):  # nothing was measured
        return "branchwise"
    # A norm at the end may be that of the sum.
    last = branches[-1] if isinstance(branches, nn.Sequential) and len(branches) else None
    inside = (module for module in branches.modules() if module is not last)
    norms = [module for module in inside if is_batch_norm(module) and module.training]
    if process_group(norms) is not None:
        # All processes decide alike, whatever their part of the batch is. On the CPU torch's own
        # synchronised norms do not run.
        return "merged" if x.device.type == "cpu" else "branchwise"
    return "auto" if may_pay(x) or not norms else "branchwise"


def _together(
    branches: nn.Module, x: Tensor, execution: str, tail: nn.Module | None
) -> tuple[Tensor | None, str | None]:
    """Return what the block gives without each branch, or None and the reason why not."""
    reason = obstacles.of(branches, x)
    if reason is not None:
        return None, reason
    norms = [module for module in branches.modules() if is_batch_norm(module)]
    is_frozen = not any(norm.training for norm in norms)
    inside = None if is_frozen else remembered(before_norm, branches, x.ndim - 2)
    if inside is None:
        done, reason = _merged(branches, x, norms, execution)
    else:
        done, reason = _merged(inside, x, norms[:-1], execution)
    in_one_pass = execution == "merged" or (execution == "auto" and one_pass_pays(x))
    if done is None:
        return normed_sum(branches, x, tail) if in_one_pass else None, reason
    if inside is None:
        return tailed(done, tail), None
    if in_one_pass:
        return normed(norms[-1], done, tail), None
    return tailed(norms[-1](done), tail), None


def _merged(
    branches: nn.Module, x: Tensor, norms: Sequence[BatchNorm], execution: str
) -> tuple[Tensor | None, str | None]:
    """Return the sum of branches, whose norms these are, as one convolution, or why not."""
    if not any(norm.training for norm in norms):
        return _in_weight_space(branches, x, norms, execution)
    if execution in ("weight_space", ROUNDED):
        return None, "a BatchNorm uses the statistics of each batch"
    reason = obstacles.of_norms(norms) or obstacles.of_channels(branches, x)
    if reason is not None:
        return None, reason
    dense = remembered(split_dense, branches, x.ndim - 2)
    is_shared = process_group(norms) is not None
    for_time = execution == "auto"
    if dense is not None and dense_pays(dense, x, for_time=for_time, is_shared=is_shared):
        return run_dense(dense, x), None
    parts = remembered(split, branches, x.ndim - 2)
    if not parts.merged:
        return None, "no branch is a pointwise or a small depthwise kernel"
    pays = execution == "merged" or merging_pays(parts, x)
    return (run_merged(parts, x) if pays else None), None


def _in_weight_space(
    branches: nn.Module, x: Tensor, norms: Sequence[BatchNorm], execution: str
) -> tuple[Tensor | None, str | None]:
    reason = obstacles.of_frozen(norms)
    if reason is not None or (execution == "auto" and not weight_space_pays(branches, x)):
        return None, reason
    try:
        return run_in_weight_space(branches, x, rounded=execution == ROUNDED), None
    except NotFoldable as error:
        return None, str(error).rstrip(".")
