"""Statistics of the joint batch of several processes, from those of each one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


def process_group(norms: Sequence[BatchNorm]) -> Any | None:
    """Return the processes that synchronised norms share their statistics with, if any."""
    synchronised = [norm for norm in norms if isinstance(norm, nn.SyncBatchNorm)]
    if not synchronised or not distributed.is_available() or not distributed.is_initialized():
        return None
    group = synchronised[0].process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


def present(x: Tensor) -> Tensor:
    """Return a batch, or one image of zeros for none, of which nothing is counted.

    A process without images takes part in the sums over all processes, in both directions.
    """
    return x if len(x) else functional.pad(x, [0, 0] * (x.ndim - 1) + [0, 1])


def joint(
    means: Tensor, spread: Tensor, offsets: Tensor, count: int, group: Any
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return mean, biased variance, offset and count of the joint batch.

    The means are counted from the offset of this process still. The variances are taken about the
    joint mean, so that nothing cancels. Only vectors as small as these are summed over the
    processes; the moments of the input stay where they are.
    """
    total = int(_summed(means.new_tensor(float(count)), group))
    share = count / total
    joint_offset = _summed(offsets * share, group)
    mean = _summed((means + (offsets - joint_offset)) * share, group) + (joint_offset - offsets)
    variance = _summed((spread + (means - mean).square()) * share, group)
    return mean, variance, offsets, total


def _summed(value: Tensor, group: Any) -> Tensor:
    result: Tensor = _Sum.apply(value, group)
    return result


class _Sum(Function):
    """The sum over the processes; the loss of each depends on it, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        value = value.clone()
        distributed.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None
