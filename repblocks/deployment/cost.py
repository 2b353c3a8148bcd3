"""What a network costs: parameters, multiply-adds, convolutions, and measured time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from repblocks.folding.fold import multiply_adds


@dataclass(frozen=True)
class Cost:
    """Exact counts.

    Args:
        parameters: Number of learned values.
        macs: Multiply-adds for one image, as the report of a fold counts them.
        convolutions: Number of convolution modules.
    """

    parameters: int
    macs: int
    convolutions: int


def count_cost(model: nn.Module, image: Tensor, macs: int | None = None) -> Cost:
    """Count what a network costs for one image.

    Args:
        model: In evaluation mode.
        image: ``(1, C, H, W)``.
        macs: Its multiply-adds, if a report says already what they are.
    """
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=multiply_adds(model, image) if macs is None else macs,
        convolutions=sum(isinstance(m, _ConvNd) for m in model.modules()),
    )


def measure_latency(models: Sequence[nn.Module], batch: Tensor, *, runs: int = 7) -> list[float]:
    """Time networks side by side, turn about, so that a busy machine slows all of them.

    Args:
        models: In evaluation mode.
        batch: What to run them on.
        runs: Timed runs of each, after one that is not timed.

    Returns:
        The median of each, in milliseconds.
    """
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            model(batch)
        for _ in range(runs):
            for model, taken in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model(batch)
                taken.append(time.perf_counter() - start)
    return [1e3 * statistics.median(taken) for taken in seconds]
