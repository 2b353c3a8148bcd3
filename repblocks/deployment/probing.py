"""Seeded noise on which the forms of an artifact are compared, when written and when checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repblocks.folding.reference import difference, rms

_NUM_IMAGES = 2


def probes(size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Make two batches of images ``(N, C, H, W)`` of the size and spread of normalised ones."""
    generator = torch.Generator().manual_seed(0)
    shape = (_NUM_IMAGES, *size)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def spread(scores: Tensor, others: Tensor) -> float:
    """Measure the part of the scores that depends on the images, which differences relate to."""
    return min(rms(others.double() - scores.double()), rms(scores.double())) or 1.0


def relative(scores: Tensor, expected: Tensor, scale: float) -> float:
    """Measure how far scores are from those that are expected, relative to their spread."""
    return rms(difference(scores.double(), expected.double())) / scale
