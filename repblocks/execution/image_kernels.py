"""Launch kernels over images on a GPU, and those that know nothing but the images.

Shapes: x ``(N, C, *spatial)``, contiguous or in channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from repblocks.execution import triton_kernels

#: Values of a block, and channels of it where they lie last: few enough for the registers.
_VALUES, _CHANNELS_LAST = 4096, 64
#: Programs that share a reduction over images: enough to fill a large GPU a few times.
_PROGRAMS = 2048


class Launch:
    """How the programs of a kernel share images, all of the layout of one.

    Kernels are told its ``geometry``, which is channels, positions and strides, and its ``blocks``.
    """

    def __init__(self, like: Tensor) -> None:
        images, channels, positions = len(like), like.shape[1], prod(like.shape[2:])
        strides = [like.stride(0), like.stride(1), 1]
        block_c, block_p = 1, min(_VALUES, triton_kernels.power(positions))
        if like.stride(1) == 1 and channels > 1:  # the positions of all images lie in a row
            images, positions, strides = 1, images * positions, [0, 1, channels]
            block_c = min(_CHANNELS_LAST, triton_kernels.power(channels))
            block_p = min(_VALUES // block_c, triton_kernels.power(positions))
        self.programs = images * -(-positions // block_p)
        self.across = -(-channels // block_c)
        self.geometry = (channels, positions, *strides)
        self.blocks = (block_c, block_p)

    def __call__(self, kernel: Any, *arguments: Any) -> None:
        """Run a kernel, one program for each block."""
        kernel[(self.programs, self.across)](*arguments, *self.blocks)


def image_moments(launch: Launch, images: Sequence[Tensor]) -> Tensor:
    """Return numbers, means and squared deviations of parts of images, ``(parts, B, 3, C)``."""
    parts = max(1, min(launch.programs, _PROGRAMS // launch.across))
    channels = images[0].shape[1]
    found = images[0].new_empty(parts, len(images), 3, channels, dtype=torch.float32)
    _kernel("moments")[(parts, launch.across)](
        *(tuple(images), found, launch.programs, *launch.geometry, *launch.blocks)
    )
    return found


def channel_sums(x: Tensor) -> Tensor | None:
    """Return the sum of each channel ``(C,)`` in float32, or None where there are no kernels."""
    if not serves(x):
        return None
    number, mean, _ = image_moments(Launch(x), [x])[:, 0].unbind(1)
    return (number * mean).sum(0)


def shifted(x: Tensor, shift: Tensor, other: Tensor | None = None) -> Tensor | None:
    """Return the input plus a shift ``(C,)`` and another one; None where there are no kernels.

    Only the result is rounded to the dtype of x.
    """
    if not serves(x) or (other is not None and other.stride() != x.stride()):
        return None
    y, launch = torch.empty_like(x), Launch(x)
    given = x, x if other is None else other, shift, y
    launch(_kernel("shifted"), *given, *launch.geometry, other is None)
    return y


def serves(x: Tensor) -> bool:
    """Tell whether there are kernels for an input; none of them can be differentiated."""
    if (
        torch.is_grad_enabled()
        or not triton_kernels.suit(x)
        or triton_kernels.loaded("triton_moments") is None
    ):
        return False
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _kernel(name: str) -> Any:
    return getattr(triton_kernels.loaded("triton_moments"), name)
