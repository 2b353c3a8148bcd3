"""Run branches with dense kernels as one convolution, in training, with true batch statistics.

Beside one kernel of the size of the window nothing is saved; of two and more, each of which would
run, normalise and keep an output of its own, the statistics follow from the moments of windows, and
so does all that is nested in them: the normalisation after a pointwise map, padded with what it
gives on zeros, before a kernel or an average.

Shapes: G groups, D input channels, I inner channels and R outputs of a group, O = GR, K taps.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.affine import embed
from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import Conv
from repblocks.branches import AveragePool, Sum
from repblocks.execution.convolving import convolved
from repblocks.execution.dense_moments import dense_moments, run_dense_kernel
from repblocks.execution.dense_reading import DenseBranch, DenseSplit
from repblocks.execution.reading import steps_of
from repblocks.execution.statistics import normalise
from repblocks.execution.synchronising import present
from repblocks.execution.taps import Rows, Taps
from repblocks.execution.window_moments import Windows


def run_dense(parts: DenseSplit, x: Tensor) -> Tensor:
    """Map ``(N, C_in, H, W)`` to the sum of all branches, ``(N, C_out, H, W)``."""
    reading = Windows(parts.groups, parts.axes)
    has_kernels = all(b.inner is not None or isinstance(b.outer, Conv) for b in parts.merged)
    moments = dense_moments(present(convolved(x) if has_kernels else x), reading)
    with torch.autocast(x.device.type, enabled=False):
        every = Taps.each(moments, reading)
        count = len(x) and reading.count(x)  # of an image that stands for none, nothing
        merging = _Merging(parts.axes, moments.centre, every, count, parts.centre)
        kernels = [merging.normed(branch) for branch in parts.merged]
        kernel, inside, shift = (reduce(torch.add, same) for same in zip(*kernels, strict=True))
    total = run_dense_kernel(moments, kernel, inside, shift, reading)
    total = total if len(x) else total[:0]
    for branch in parts.others:
        total = total + branch(x)
    return total


class _Merging:
    """The normalisation of each branch by the moments of the windows."""

    def __init__(
        self, axes: tuple[Axis, ...], centre: Tensor, every: Taps, count: int, own: int
    ) -> None:
        self._axes = axes
        self._every = every
        self._count = count
        self._centre = centre.view(len(every.mean), -1)
        one = every.mask.new_zeros(1, len(every.mask))
        one[:, own].fill_(1)  # a value that is set would be copied to a GPU
        #: The tap that reads each position of the image.
        self._own = every.summed(one)

    def normed(self, branch: DenseBranch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a branch as a kernel ``(G, R, D, K)``, on the mask ``(G, R, K)``, and a shift."""
        rows = self._rows(branch)
        scales, shift = self._normalise(rows, branch.norm)
        return *rows.scaled(scales), shift

    def _normalise(self, rows: Rows, norm: BatchNorm) -> tuple[Tensor, Tensor]:
        means, spread, offsets = rows.statistics()
        return normalise(norm, means, spread, offsets, self._count)

    def _rows(self, branch: DenseBranch) -> Rows:
        """Return the kernel of a branch before its own normalisation."""
        inner, inside, border = self._inner(branch)
        taps = self._taps(branch)
        if not isinstance(branch.outer, Conv):
            return Rows(inner.unsqueeze(3), inside.unsqueeze(2), taps, border)
        axes = branch.axes if taps.weights is not None else self._axes
        own = embed(branch.outer.weight.to(inner.dtype), branch.axes, axes).flatten(2)
        outer = own.view(len(inner), -1, *own.shape[1:])
        weight = outer
        if branch.inner is not None:
            flat = outer.transpose(2, 3).flatten(1, 2) @ inner
            weight = flat.view(*outer.shape[:2], -1, flat.shape[2]).transpose(2, 3)
        constant = None
        if border is not None:
            constant = (outer.sum(3) @ border.view(len(inner), -1, 1)).flatten()
        return Rows(weight, (outer * inside[:, None, :, None]).sum(2), taps, constant)

    def _inner(self, branch: DenseBranch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what the outer kernel reads: ``weight x' + inside m``, and what it adds to both.

        The weight is ``(G, I, D)``, the mask's ``(G, I)``; ``(I,)`` stands outside the image.
        """
        if branch.inner is None or branch.pad is None:
            return _identity(self._every.mean), self._centre, None
        weight = _pointwise(branch.inner, self._every.mean)
        inside = weight @ self._centre.unsqueeze(2)
        norm: BatchNorm = branch.pad.norm
        scales, shift = self._normalise(Rows(weight.unsqueeze(3), inside, self._own), norm)
        border = branch.pad.image_of_zero().to(shift)
        scaled = scales.view(len(weight), -1, 1) * weight
        return scaled, (shift - border).view(len(weight), -1), border

    def _taps(self, branch: DenseBranch) -> Taps:
        """Return what the outer kernel of a branch reads."""
        if branch.taps > 1:
            return self._every
        sizes = [axis.size for axis in branch.axes]
        share = 1 / torch.Size(sizes).numel() if isinstance(branch.outer, AveragePool) else 1.0
        own = self._every.mask.new_full((1, 1, *sizes), share)
        return self._every.summed(embed(own, branch.axes, self._axes).view(1, -1))


def _pointwise(module: nn.Module, like: Tensor) -> Tensor:
    """Return the matrices ``(G, I, D)`` of a pointwise map; ``like`` is ``(G, D, K)``."""
    if isinstance(module, Sum):
        return reduce(torch.add, [_pointwise(child, like) for child in module.values()])
    for conv in steps_of(module):
        weight: Tensor = conv.weight  # type: ignore[assignment] # a convolution
        return weight.to(like.dtype).view(len(like), -1, like.shape[1])
    return _identity(like)


def _identity(like: Tensor) -> Tensor:
    one = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    return one.expand(len(like), -1, -1)
