"""What bounds the price of a training step from below: the passes over images that remain."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repblocks.blocks import ConvBlock
from repblocks.execution.convolving import convolve, gradient_of_input, gradient_of_weight
from repblocks.execution.dense_reading import DenseSplit, split_dense
from repblocks.execution.moments import run_kernel
from repblocks.execution.pointwise_moments import Channels
from repblocks.execution.reading import Split, split
from repblocks.execution.window_moments import Windows

Step = Callable[[], object]


def without_norms(plain: nn.Module) -> nn.Module:
    """Return a copy whose convolutions have a bias in the place of a BatchNorm.

    No exact form of a block with frozen norms does less.
    """
    found = copy.deepcopy(plain)
    for parent in [*found.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
            if isinstance(child, nn.Conv2d) and child.bias is None:
                child.bias = nn.Parameter(torch.zeros(child.out_channels))
    return found


def passes_of(block: ConvBlock, x: Tensor, run: Callable[[nn.Module, Tensor], Step]) -> Step | None:
    """Return the passes over images of a merged block by themselves, or None if it has none.

    These are the moments and their gradient, one convolution and its two gradients, the activation
    and its gradient, and the branches that are not merged; not the arithmetic on weights.

    Args:
        block: In training form.
        x: Its input.
        run: Makes the step of a branch that is not merged.
    """
    assert block.branches is not None
    dense = split_dense(block.branches, 2)
    parts = split(block.branches, 2) if dense is None else dense
    if not parts.merged:
        return None
    others = [run(branch, x) for branch in parts.others]
    merged = _merged(parts, x, block.shape.groups)

    def step() -> None:
        merged()
        for other in others:
            other()

    return step


def _merged(parts: Split | DenseSplit, x: Tensor, groups: int) -> Step:
    is_pointwise = isinstance(parts, Split) and not parts.is_depthwise
    reading = Channels(groups, 2) if is_pointwise else Windows(groups, parts.axes)
    read = x.shape[1] // groups * (1 if isinstance(reading, Channels) else reading.taps)
    sizes = [axis.size for axis in reading.axes]
    weight = torch.randn(x.shape[1], x.shape[1] // groups, *sizes)
    covariance, mean = torch.randn(groups, read, read), torch.randn(groups, read)
    centre, kernel = torch.zeros(x.shape[1]), weight.view(groups, -1, read)

    @torch.no_grad()
    def dense() -> Tensor:
        reading.gram(x)  # type: ignore[union-attr] # windows
        y = convolve(x, weight, None, reading.axes, groups).relu_()
        g = torch.ops.aten.threshold_backward(y, y, 0)
        of_x = gradient_of_input(g, x, weight, reading.axes, groups)
        gradient_of_weight(g, x, sizes, reading.axes, groups)
        return reading.mixed(x, covariance).add_(of_x)  # type: ignore[union-attr]

    @torch.no_grad()
    def step() -> Tensor:
        reading.moments(x, centre)
        y = run_kernel(x, kernel, torch.zeros(len(weight)), centre, reading).relu_()
        g = torch.ops.aten.threshold_backward(y, y, 0)
        of_x = gradient_of_input(g, x, weight, reading.axes, groups)
        reading.product(g, x, centre)
        return reading.gradient(x, mean, mean, covariance, of_x)

    return dense if isinstance(parts, DenseSplit) else step
