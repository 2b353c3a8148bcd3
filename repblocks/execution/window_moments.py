"""Mean and covariance of the window of each channel: what every depthwise branch reads.

Shapes: x ``(N, C, *spatial)``, G groups of D = C / G channels, ``*P`` output positions, ``*k`` taps
of the window, K of them, M = N times the number of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from types import EllipsisType

import torch
from torch import Tensor

from repblocks.algebra.axis import Axis
from repblocks.execution import compiled, on_gpu
from repblocks.execution.convolving import (
    cropped,
    gradient_of_weight,
    padded,
    shifted,
    summable,
    sums_wide,
    wide,
)
from repblocks.execution.lags import Lags


@dataclass(frozen=True)
class Windows:
    """The vector of the taps of a window, at each output position, of the channels of a group.

    The moments about a centre are those of single channels, G = C.

    Args:
        groups: G.
        axes: Where the taps read; zeros outside the image.
    """

    groups: int
    axes: tuple[Axis, ...]

    @property
    def taps(self) -> int:
        """K."""
        return prod([axis.size for axis in self.axes])

    def positions(self, x: Tensor) -> int:
        """Return the number of output positions of an image."""
        sizes = zip(x.shape[2:], self.axes, strict=True)
        return prod([(size + axis.slack) // axis.stride + 1 for size, axis in sizes])

    def count(self, x: Tensor) -> int:
        """Return how many vectors are read."""
        return x.shape[0] * self.positions(x)

    def lags(self, x: Tensor) -> Lags | None:
        """Return the differences of two taps, where products depend on nothing else."""
        is_large = all(s >= axis.extent for s, axis in zip(x.shape[2:], self.axes, strict=True))
        return Lags.of(self.axes) if is_large else None

    def offset(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the centre times the share of windows whose tap lies inside, ``(C, K)``."""
        return centre.unsqueeze(1) * _remembered(_mask_mean, self.axes, x, centre.dtype)

    def moments(self, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``(C, K)`` less the offset, and the covariance ``(C, K, K)``.

        With the mask ``m`` of the image, ``x = x' + c m``: the covariance has four parts, each a
        covariance of small numbers, or of the mask.
        """
        share, border = (
            _remembered(known, self.axes, x, centre.dtype)
            for known in (_mask_mean, _mask_covariance)
        )
        found = on_gpu.window_moments(x, centre, self.axes, share, border)
        if found is not None:
            return found
        count = self.count(x)
        deviation = _remembered(_mask_deviation, self.axes, x, centre.dtype)
        gram, images = self._products(x, centre)
        summed = self.read(images)
        mean = summed.sum(2) / count
        covariance = gram / count - mean.unsqueeze(2) * mean.unsqueeze(1)
        mixed = summed @ deviation.transpose(1, 2) * (centre / count).view(-1, 1, 1)
        covariance = covariance + mixed + mixed.transpose(1, 2)
        return mean, covariance + centre.square().view(-1, 1, 1) * border

    def _products(self, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the products of all pairs of taps ``(C, K, K)``, and the sum of the images."""
        found = compiled.window_products(x, centre, self.axes)
        if found is not None:
            return found
        centred = self.centred(wide(x), centre)
        return self.gram(centred), centred.sum(0, keepdim=True)

    def gradient(
        self, x: Tensor, mean: Tensor, of_mean: Tensor, of_covariance: Tensor, of_x: Tensor
    ) -> Tensor:
        """Return the gradient of the input from those of its moments, of the mean ``(C, K)``."""
        moments, factor = (of_mean, of_covariance), 1 / self.count(x)
        total = on_gpu.window_gradient(x, mean, moments, of_x, self.axes, factor)
        if total is not None:
            return total
        weight = of_covariance * (2 * factor)  # it is symmetric: a sum of squares
        bias = of_mean * factor - (weight @ mean.unsqueeze(2)).squeeze(2)
        constant = bias.unsqueeze(2).expand(-1, -1, self.positions(x))
        image = self.write(constant, wide(x[:1]))
        found = compiled.window_gradient(x, weight, image, of_x, self.axes)
        return self.mixed(wide(x), weight).add_(image).add_(of_x) if found is None else found

    def product(self, g: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of ``g`` times what is read, ``(C, 1, K)``, and of ``g``, ``(C,)``."""
        inner, images = self._products_with(g, x, centre)
        border = images.flatten(1) @ _remembered(_mask_deviation, self.axes, x, centre.dtype)[0].T
        of_kernel = torch.addcmul(inner, centre.unsqueeze(1), border)
        return of_kernel.unsqueeze(1), images.flatten(1).sum(1)

    def _products_with(self, g: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of ``g`` times the centred taps, ``(C, K)``, and of its images."""
        found = compiled.convolution_products(g, x, centre, self.axes)
        if found is not None:
            return found
        images, sizes = self._sum_of_images(g, centre), [axis.size for axis in self.axes]
        g, x = summable(g, x)
        inner = gradient_of_weight(g, shifted(x, -centre), sizes, self.axes, x.shape[1])
        return inner.flatten(1), images

    def _sum_of_images(self, g: Tensor, centre: Tensor) -> Tensor:
        if sums_wide(g) and on_gpu.serves(g, self.axes):
            return on_gpu.sum_of_images(g, torch.zeros_like(centre))[0]
        return g.sum(0, dtype=centre.dtype)

    def read(self, x: Tensor) -> Tensor:
        """Return what each tap reads, ``(C, K, M)``."""
        view = self._view(padded(x, self.axes))
        n = len(self.axes)
        return view.permute(1, *range(2 + n, 2 + 2 * n), 0, *range(2, 2 + n)).reshape(
            x.shape[1], self.taps, -1
        )

    def write(self, taps: Tensor, like: Tensor) -> Tensor:
        """Add ``(C, K, M)`` to the positions of the input that each tap reads."""
        target = torch.zeros_like(padded(like, self.axes))
        view = self._view(target)
        n = len(self.axes)
        values = taps.view(*taps.shape[:2], like.shape[0], *view.shape[2 : 2 + n]).transpose(0, 2)
        for tap, place in enumerate(product(*map(range, view.shape[2 + n :]))):
            where: tuple[int | EllipsisType, ...] = (..., *place)
            view[where].add_(values[:, tap])
        return cropped(target, self.axes)

    def centred(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the input less the centre ``(C,)``."""
        return x - centre.view(-1, *(1,) * len(self.axes))

    def mask(self, x: Tensor) -> Tensor:
        """Return which taps lie inside the image, ``(1, K, P)``, in float64."""
        return _remembered(_mask, self.axes, x, torch.float64)

    def mask_deviation(self, x: Tensor) -> Tensor:
        """Return the mask less its mean over the positions, ``(1, K, P)``, in the dtype of x."""
        return _remembered(_mask_deviation, self.axes, x, x.dtype)

    def gram(self, x: Tensor) -> Tensor:
        """Return the sums of the products of all pairs that a group reads, ``(G, DK, DK)``."""
        lags = self.lags(x)
        if lags is None:
            taps = self.read_groups(x)
            return taps @ taps.transpose(1, 2)
        pairs = lags.products(x, self.groups)
        for strip in lags.outside(self.axes):
            taps = Windows(self.groups, strip.axes).read_groups(x[strip.read])
            part = pairs[strip.pairs]
            part -= (taps @ taps.transpose(1, 2)).view_as(part)
        return pairs.flatten(4).flatten(1, 3)

    def mixed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return what a symmetric weight ``(G, DK, DK)`` makes of what is read, written back."""
        lags = self.lags(x)
        if lags is None:
            return self.write((weight @ self.read_groups(x)).view(x.shape[1], self.taps, -1), x)
        depth = x.shape[1] // self.groups
        pairs = weight.view(self.groups, depth, *lags.sizes, depth, *lags.sizes)
        total = lags.convolved(x, pairs, self.groups)
        for strip in lags.outside(self.axes):
            windows, part = Windows(self.groups, strip.axes), x[strip.read]
            taps = windows.read_groups(part)
            own = pairs[strip.pairs].reshape(self.groups, *taps.shape[1:2] * 2)
            written = (own @ taps).view(x.shape[1], windows.taps, -1)
            total[strip.read] -= windows.write(written, part)
        return total

    def read_groups(self, x: Tensor) -> Tensor:
        """Return what each group reads, ``(G, DK, M)``."""
        taps = self.read(x)  # of one image, perhaps a view of it
        return taps.reshape(self.groups, -1, taps.shape[2])

    def _view(self, image: Tensor) -> Tensor:
        """View a padded input as ``(N, C, *P, *k)``."""
        counts = [
            (size - axis.extent) // axis.stride + 1
            for size, axis in zip(image.shape[2:], self.axes, strict=True)
        ]
        steps = list(zip(image.stride()[2:], self.axes, strict=True))
        return image.as_strided(
            (*image.shape[:2], *counts, *(axis.size for axis in self.axes)),
            (
                *image.stride()[:2],
                *(step * axis.stride for step, axis in steps),
                *(step * axis.dilation for step, axis in steps),
            ),
        )


Place = tuple[tuple[int, ...], torch.dtype, torch.device]


def _mask(axes: tuple[Axis, ...], place: Place) -> Tensor:
    size, _, device = place
    ones = torch.ones(1, 1, *size, dtype=torch.float64, device=device)
    return Windows(1, axes).read(ones)


def _mask_mean(axes: tuple[Axis, ...], place: Place) -> Tensor:
    return _mask(axes, place).mean(2).to(place[1])


def _mask_deviation(axes: tuple[Axis, ...], place: Place) -> Tensor:
    mask = _mask(axes, place)
    return (mask - mask.mean(2, keepdim=True)).to(place[1])


def _mask_covariance(axes: tuple[Axis, ...], place: Place) -> Tensor:
    deviation = _mask_deviation(axes, (place[0], torch.float64, place[2]))
    return (deviation @ deviation.transpose(1, 2) / deviation.shape[2]).to(place[1])


Compute = Callable[[tuple[Axis, ...], Place], Tensor]


def _remembered(compute: Compute, axes: tuple[Axis, ...], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a property of the mask, which depends on the size of the image alone."""
    place = (tuple(x.shape[2:]), dtype, x.device)
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return compute(axes, place)
    known = _known_small if compute in (_mask_mean, _mask_covariance) else _known_images
    if known is _known_images and _is_captured(x):
        return compute(axes, place)  # a graph reads on where something forgotten was
    return known(compute, axes, place)


def _is_captured(x: Tensor) -> bool:
    """Tell whether what is done with x becomes part of a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _computed(compute: Compute, axes: tuple[Axis, ...], place: Place) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return compute(axes, place)


_known_small = lru_cache(maxsize=256)(_computed)
#: As large as the taps of an image of one channel each, and quickly made anew.
_known_images = lru_cache(maxsize=4)(_computed)
