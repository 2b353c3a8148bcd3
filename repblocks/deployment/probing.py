"""Seeded images on which the forms of an artifact are run, when written and when checked."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from repblocks.folding.reference import difference, rms

#: Of what a report measured, the scores of each quantized form.
SCORES = "quantized_scores"
_NUM_IMAGES, _NUM_PICTURES = 2, 4
#: Of one picture, as a report records them.
_MOST_SCORES, _DIGITS = 100, 6


def probes(size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Make two batches of noise ``(N, C, H, W)`` of the size and spread of normalised images."""
    generator = torch.Generator().manual_seed(0)
    shape = (_NUM_IMAGES, *size)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def pictures(size: Sequence[int]) -> Tensor:
    """Make images ``(N, C, H, W)`` of patches in all sizes, which a network tells apart.

    Of plain noise, whose mean is the same everywhere, the scores of two images are almost equal:
    what a quantized network rounds is larger than what it sees.

    Args:
        size: ``(C, H, W)``.
    """
    channels, *sides = size
    generator = torch.Generator().manual_seed(0)
    patches = [
        torch.randn(
            _NUM_PICTURES, channels, *(min(side, 2**n) for side in sides), generator=generator
        )
        for n in range(max(sides).bit_length())
    ]
    total = torch.stack([interpolate(one, tuple(sides)) for one in patches]).sum(0)
    return total / len(patches) ** 0.5


def excerpt(scores: Tensor) -> Tensor:
    """Take scores of each image ``(N, M)``, at most 100, evenly from all of them."""
    flat = scores.flatten(1).double()
    return flat[:, :: ceil(flat.shape[1] / _MOST_SCORES)]


def plain(scores: Tensor) -> list[list[float]]:
    """Give numbers to record."""
    return [[float(f"{one:.{_DIGITS}g}") for one in image] for image in scores.tolist()]


def spread(scores: Tensor, others: Tensor) -> float:
    """Measure the part of the scores that depends on the images, which differences relate to."""
    return min(rms(others.double() - scores.double()), rms(scores.double())) or 1.0


def deviation(scores: Tensor) -> float:
    """Measure how far the scores of images are from their mean; 1 if they are all the same."""
    return rms(scores - scores.mean(0)) or 1.0


def relative(scores: Tensor, expected: Tensor, scale: float) -> float:
    """Measure how far scores are from those that are expected, relative to their spread."""
    return rms(difference(scores.double(), expected.double())) / scale
