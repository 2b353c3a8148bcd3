"""Run the branches of a block as one convolution, in training, with true batch statistics.

The output of a linear branch ``z = W x`` has mean ``W m`` and variance ``diag(W C W')``, where
``m`` and ``C`` are the mean and covariance of what its kernel reads. Where ``C`` is small, which it
is for pointwise and depthwise kernels, ``z`` need not be computed to be normalised: all such
branches of a block are one convolution, whose kernel depends on the batch.

Shapes: G groups, D numbers that a group reads, R output channels of a group, B branches.
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
from repblocks.execution.statistics import normalise, resolved, variances
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
    x, centre, mean, covariance = with_moments(x, reading)
    weight = torch.stack([_in_window(branch, parts.axes, mean) for branch in parts.merged])
    return _run(parts, weight.unsqueeze(2), x, centre, mean, covariance, reading, images)


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
    x, centre, mean, covariance = with_moments(x, reading)
    weight = torch.stack([conv.weight for conv in convs]).to(mean.dtype)
    weight = weight.view(len(convs), *mean.shape[:1], -1, mean.shape[1])
    return _run(parts, weight, x, centre, mean, covariance, reading, images)


def _run(
    parts: Split,
    weight: Tensor,
    x: Tensor,
    centre: Tensor,
    mean: Tensor,
    covariance: Tensor,
    reading: Reading,
    images: int,
) -> Tensor:
    """Normalise each branch by the moments and run the sum.

    The branches that have a row in ``weight (B, G, R, D)`` stand first; the others are the input
    itself, whose moments need no product.
    """
    with torch.autocast(x.device.type, enabled=False):
        means, spread = _statistics(weight, mean, covariance)
        offset = reading.offset(x, centre)
        offsets = (weight @ offset.unsqueeze(2)).flatten(1)
        inputs = len(parts.merged) - len(weight)
        if inputs:
            diagonal = covariance.diagonal(dim1=1, dim2=2).flatten().clamp_min(0)
            means = torch.cat([means, mean.flatten().expand(inputs, -1)])
            spread = torch.cat([spread, diagonal.expand(inputs, -1)])
            offsets = torch.cat([offsets, offset.flatten().expand(inputs, -1)])
        norms = [branch.norm for branch in parts.merged]
        count = images and reading.count(x)
        scales, shift = normalise(norms, means, spread, offsets, count)
        scales = scales.view(len(norms), *weight.shape[1:3])
        kernel = (scales[: len(weight)].unsqueeze(3) * weight).sum(0)
        if inputs:
            kernel = kernel + torch.diag_embed(scales[len(weight) :].sum(0))
    return run_kernel(x, kernel, shift, centre, reading)


def _statistics(weight: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance ``(B, O)`` of each row of ``weight (B, G, R, D)``."""
    means = (weight @ mean.unsqueeze(2)).flatten(1)
    rows = weight.transpose(0, 1).flatten(1, 2)
    spread = resolved(variances(rows, covariance), (rows, covariance.diagonal(dim1=1, dim2=2)))
    return means, spread.view(weight.shape[1], len(weight), -1).transpose(0, 1).flatten(1)
