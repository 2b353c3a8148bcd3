"""Run the branches of a block as one convolution, in training, with true batch statistics.

The output of a linear branch ``z = W x`` has mean ``W m`` and variance ``diag(W C W')``, where
``m`` and ``C`` are the mean and covariance of what its kernel reads. Where ``C`` is small, which it
is for pointwise and depthwise kernels, ``z`` need not be computed to be normalised: all such
branches of a block are one convolution, whose kernel depends on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repblocks.algebra.affine import embed
from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Conv
from repblocks.execution.convolving import convolved, sampled
from repblocks.execution.moments import Reading, run_kernel, with_moments
from repblocks.execution.pointwise_moments import Channels
from repblocks.execution.reading import NormedConv, Split
from repblocks.execution.rows import merge_rows
from repblocks.execution.synchronising import present
from repblocks.execution.window_moments import Windows


def run_merged(parts: Split, x: Tensor) -> Tensor:
    """Map ``(N, C_in, *spatial)`` to the sum of all branches, ``(N, C_out, *spatial)``."""
    read = x if parts.is_depthwise else sampled(x, parts.axes)
    if all(isinstance(branch.conv, Conv) for branch in parts.merged):
        read = convolved(read)
    run = _depthwise if parts.is_depthwise else _pointwise
    total = run(parts, present(read), len(x))
    total = total if len(x) else total[:0]
    for branch in parts.others:
        total = total + branch(x)
    return total


def _depthwise(parts: Split, x: Tensor, images: int) -> Tensor:
    reading = Windows(x.shape[1], parts.axes)
    found = with_moments(x, reading)
    weights = [_in_window(branch, parts.axes, found[2]) for branch in parts.merged]
    return _run(parts, weights, found, reading, images)


def _in_window(branch: NormedConv, axes: Sequence[Axis], like: Tensor) -> Tensor:
    """Return the kernel of a depthwise branch in the common window, ``(C, K)``."""
    if isinstance(branch.conv, Conv):
        own = branch.conv.weight.to(like.dtype)
    else:
        share = 1.0 if branch.conv is None else 1 / branch.taps
        own = like.new_full((like.shape[0], 1, *(axis.size for axis in branch.axes)), share)
    return embed(own, branch.axes, axes).flatten(1)


def _pointwise(parts: Split, x: Tensor, images: int) -> Tensor:
    convs = [branch.conv for branch in parts.merged if isinstance(branch.conv, Conv)]
    reading = Channels(convs[0].groups, len(parts.axes))
    found = with_moments(x, reading)
    weights = [conv.weight.to(found[2].dtype) for conv in convs]
    return _run(parts, weights, found, reading, images)


def _run(
    parts: Split,
    weights: Sequence[Tensor],
    found: tuple[Tensor, Tensor, Tensor, Tensor],
    reading: Reading,
    images: int,
) -> Tensor:
    """Normalise each branch by the moments and run the sum.

    The branches that have weights stand first; the others are the input itself.
    """
    x, centre, mean, covariance = found
    with torch.autocast(x.device.type, enabled=False):
        norms = [branch.norm for branch in parts.merged]
        offset, count = reading.offset(x, centre), images and reading.count(x)
        kernel, shift = merge_rows(norms, weights, (mean, covariance), offset, count)
    return run_kernel(x, kernel, shift, centre, reading)
