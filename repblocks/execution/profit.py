"""Where merging pays: by shape and device alone, so that a run does not depend on its values.

What a block costs merged hardly depends on its number of branches, but has a part that does not
shrink with its input. The thresholds are where the merged execution begins not to be slower on one
CPU thread, measured with ``benchmarks/training_cost.py --sweep``. On a GPU they are where kernels
of the branches take longer than the CPU takes to launch those of the merged execution. Where
nothing was measured, ``auto`` runs the branches, unless no statistics are needed; so it does in
compiled code, where that was the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod

import torch
from torch import Tensor, nn

from repblocks.algebra.kernel import Conv
from repblocks.execution import compiled, triton_kernels
from repblocks.execution.dense_reading import DenseSplit
from repblocks.execution.frozen_sum import FrozenSum, read_frozen_sum
from repblocks.execution.reading import Split, remembered
from repblocks.execution.window_moments import Windows

#: Fewer branches than these gain time only beside a large input.
_BRANCHES = 3
#: Positions for each channel, from which two pointwise branches gain it; one never does.
_FEW = 512
#: The same for one or two beside others, where merging takes hardly more time and keeps less.
_BESIDE = {1: 256, 2: 32}
_POINTWISE = 2**16
#: Values of the input, below which arithmetic on small matrices costs more than dense kernels do.
_WITH_DENSE = 3 * 2**17
#: Positions for each number that a group of dense kernels reads.
_DENSE = 8
#: Positions for each channel that a kernel reads, from which composing kernels gains time.
_COMPOSED = 1.5
#: What a weight of a frozen branch costs to be summed, and an output of one to be normalised, in
#: multiplications of its convolution.
_SUMMED, _NORMED = 25, 20
#: Values of the input, by whether the block has a stride and whether the channels lie last.
_DEPTHWISE = {(False, False): 2**18, (False, True): 2**21, (True, False): 2**21}
#: The same where kernels are compiled.
_COMPILED = {(False, False): 2**17, (False, True): 2**19, (True, False): 2**19}
#: Values of the input on a GPU, from which merging pays, or one pass for all norms, by whether
#: launches of kernels take time; and the taps of the largest window.
_ON_GPU, _MEASURED_TAPS = {True: 2**26, False: 2**20}, 9
#: Positions for each channel, from which products of weights take a GPU less than branches do.
_POSITIONS_ON_GPU = 16
_launches_take_time = ContextVar("_launches_take_time", default=True)


@contextmanager
def launched_for_free() -> Iterator[None]:
    """Let ``auto`` decide by what kernels take on a GPU, as where they are captured in a graph."""
    token = _launches_take_time.set(False)
    try:
        yield
    finally:
        _launches_take_time.reset(token)


def may_pay(x: Tensor) -> bool:
    """Tell whether merging may pay for branches that need the statistics of an input."""
    return one_pass_pays(x) or (x.device.type == "cpu" and x.numel() >= _POINTWISE)


def one_pass_pays(x: Tensor) -> bool:
    """Tell whether normalising, adding and rectifying in one pass pays, on a GPU."""
    is_measured = x.dtype is torch.bfloat16 and _is_channels_last(x)
    return (
        is_measured and x.numel() >= _ON_GPU[_launches_take_time.get()] and triton_kernels.suit(x)
    )


def dense_pays(parts: DenseSplit, x: Tensor, *, for_time: bool, is_shared: bool) -> bool:
    """Tell whether the input is large beside the covariance of a window.

    Args:
        parts: The branches.
        x: Their input.
        for_time: Whether it shall be no slower than the branches; else it keeps less for the
            backward pass, and is not much slower.
        is_shared: Whether processes share statistics: all of them decide alike then, whatever
            their part of the batch is.
    """
    reading = Windows(parts.groups, parts.axes)
    read = x.shape[1] // parts.groups * reading.taps
    if for_time and x.device.type in triton_kernels.DEVICES:
        return False
    is_large = reading.count(x) >= (_DENSE if for_time else _DENSE // 4) * read
    is_large = is_large and not (for_time and x.numel() < _WITH_DENSE)
    return (is_large or is_shared) and reading.lags(x) is not None


def merging_pays(parts: Split, x: Tensor) -> bool:
    """Tell whether the merged branches take less time than one by one."""
    is_few = len(parts.merged) < _BRANCHES
    if x.device.type in triton_kernels.DEVICES:
        has_stride = any(axis.stride > 1 for axis in parts.axes) and _launches_take_time.get()
        is_measured = not has_stride and prod(axis.size for axis in parts.axes) <= _MEASURED_TAPS
        is_large = parts.is_depthwise or x.numel() >= _POSITIONS_ON_GPU * x.shape[1] ** 2
        return not is_few and is_measured and is_large and one_pass_pays(x)
    if not parts.is_depthwise:
        return _pointwise_pays(parts, x, is_few=is_few)
    if is_few or x.ndim != 4:
        return False
    has_stride = any(axis.stride > 1 for axis in parts.axes)
    is_last = _is_channels_last(x)
    is_compiled = compiled.serves(x, parts.axes)
    if is_compiled and x.shape[2] * x.shape[3] < compiled.SMALLEST_IMAGE:
        return False
    least = (_COMPILED if is_compiled else _DEPTHWISE).get((has_stride, is_last))
    return least is not None and x.numel() >= least


def _pointwise_pays(parts: Split, x: Tensor, *, is_few: bool) -> bool:
    is_alone = not parts.others
    if is_few and ((is_alone and len(parts.merged) == 1) or _is_channels_last(x)):
        return False
    if not is_alone and x.numel() < _WITH_DENSE:
        return False
    # A product of matrices as large as the weights, for each branch, stands against the input.
    read = x.numel() // prod(axis.stride for axis in parts.axes)
    least = (_FEW if is_alone else _BESIDE[len(parts.merged)]) if is_few else 2
    return read >= least * x.shape[1] ** 2


def _is_channels_last(x: Tensor) -> bool:
    is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return is_last and not x.is_contiguous()


def weight_space_pays(branches: nn.Module, x: Tensor) -> bool:
    """Tell whether merging the kernels takes less time than running the branches.

    Both take multiplications in proportion to the weights: composing does for each channel that a
    kernel reads, the branches for each position. A sum of frozen branches composes nothing: it
    reads each weight once. That holds on every device.
    """
    frozen = remembered(read_frozen_sum, branches, x.ndim - 2)
    if frozen is not None:
        return _frozen_pays(frozen, x)
    convs = [module for module in branches.modules() if isinstance(module, Conv)]
    read = min(x.shape[1], max((c.in_channels // c.groups for c in convs), default=1))
    return x.numel() >= _COMPOSED * read * x.shape[1]


def _frozen_pays(parts: FrozenSum, x: Tensor) -> bool:
    positions = x.numel() // (x.shape[1] * prod(axis.stride for axis in parts.axes))
    numbers = sum(weight.numel() for weight in parts.weights)
    rows, width = parts.weights[0].shape[:2]
    own = rows * width * prod(axis.size for axis in parts.axes)
    saved = numbers - own + _NORMED * rows * len(parts.branches)
    return positions * saved >= _SUMMED * numbers
