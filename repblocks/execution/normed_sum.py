"""Run the branches, then normalise, add and rectify their outputs in one pass, on a GPU.

What a branch costs there is, most of all, to read and write its output: its BatchNorm reads it
twice and writes another, the sum reads that, the activation reads and writes the sum, and the
backward pass does as much again. Here the outputs are read once for their statistics and once for
the result, which the backward pass computes anew from them.

Shapes: B branches, O channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.execution import triton_kernels
from repblocks.execution.image_kernels import Launch, image_moments
from repblocks.execution.obstacles import of_norms
from repblocks.execution.once import once
from repblocks.execution.reading import branches_of, remembered, until_norm
from repblocks.execution.statistics import check_count
from repblocks.execution.synchronising import process_group

#: Channels, and parts of their moments, that a program takes at a time.
_CHANNELS, _PARTS = 8, 256
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


Branch = tuple[list[nn.Module], BatchNorm]


def normed_sum(tree: nn.Module, x: Tensor, tail: nn.Module | None) -> Tensor | None:
    """Map ``(N, C_in, *spatial)`` to the tail of the branches' sum, ``(N, C_out, *spatial)``.

    Args:
        tree: The branches.
        x: Their input.
        tail: What is done with their sum, if anything; a ReLU takes no pass of its own.

    Returns:
        It, or None where there are no kernels, or a branch does not end in a BatchNorm that they
        can do, of channels and a shape that all have.

    Raises:
        ConfigurationError: for a single value of each channel, which has no variance.
    """
    branches = remembered(_read, tree, x.ndim - 2)
    if branches is None or not _serves([norm for _, norm in branches], x):
        return None
    images = [reduce(lambda value, step: step(value), steps, x) for steps, _ in branches]
    norms = [norm for _, norm in branches]
    return _run(images, norms, tail) if _fit(images, norms) else None


def normed(norm: BatchNorm, x: Tensor, tail: nn.Module | None) -> Tensor:
    """Return ``tail(norm(x))``, in one pass where there are kernels."""
    if _serves([norm], x) and _fit([x], [norm]):
        return _run([x], [norm], tail)
    return tailed(norm(x), tail)


def tailed(y: Tensor, tail: nn.Module | None) -> Tensor:
    """Return ``tail(y)``, or what there is without one."""
    result: Tensor = y if tail is None else tail(y)
    return result


def _read(tree: nn.Module, ndim: int) -> list[Branch] | None:
    """Return the branches with the BatchNorm that each ends in; None if one does not."""
    del ndim
    found = [until_norm(branch) for branch in branches_of(tree)]
    known = [branch for branch in found if branch is not None]
    return known if len(known) == len(found) else None


def _serves(norms: Sequence[BatchNorm], x: Tensor) -> bool:
    """Tell whether there are kernels for an input, and they can do its norms."""
    if not triton_kernels.suit(x) or len({(norm.eps, norm.momentum) for norm in norms}) > 1:
        return False
    is_usual = of_norms(norms) is None and process_group(norms) is None
    return is_usual and _kernels() is not None


def _fit(images: Sequence[Tensor], norms: Sequence[BatchNorm]) -> bool:
    """Tell whether images have one shape and the channels of norms; kernels would read on."""
    channels = {norm.num_features for norm in norms}
    return len({image.shape for image in images}) == 1 and channels == {images[0].shape[1]}


def _run(images: Sequence[Tensor], norms: Sequence[BatchNorm], tail: nn.Module | None) -> Tensor:
    check_count(images[0].numel() // images[0].shape[1])
    is_rectified = _is_relu(tail)
    weights = [norm.weight.contiguous() for norm in norms if norm.weight is not None]
    biases = [norm.bias.contiguous() for norm in norms if norm.bias is not None]
    given = (norms, is_rectified, len(images))
    result: Tensor = _Normed.apply(*given, *_alike(images), *weights, *biases)
    return result if is_rectified else tailed(result, tail)


def _is_relu(tail: nn.Module | None) -> bool:
    """Tell whether a tail is a ReLU and nothing else."""
    if tail is None:
        return False
    parts = [part for part in tail.modules() if type(part) is not nn.Sequential]
    has_hooks = any(getattr(part, kind) for part in tail.modules() for kind in _HOOKS)
    return [type(part) for part in parts] == [nn.ReLU] and not has_hooks


def _kernels() -> ModuleType | None:
    return triton_kernels.loaded("triton_sums")


def _alike(images: Sequence[Tensor]) -> list[Tensor]:
    """Return the images with one layout, that of the first: channels last, or first."""
    first = images[0]
    is_last = first.stride(1) == 1 and first.ndim == 4
    layout = torch.channels_last if is_last else torch.contiguous_format
    return [image.contiguous(memory_format=layout) for image in images]


class _Normed(Function):
    @staticmethod
    def forward(
        ctx: Any, norms: Sequence[BatchNorm], is_rectified: bool, branches: int, *given: Tensor
    ) -> Tensor:
        images, affine = given[:branches], given[branches:]
        weights = branches if norms[0].weight is not None else 0
        launch = Launch(images[0])
        found = _statistics(launch, norms, images, affine[:weights], affine[weights:])
        means, _, factors, shift = found
        dtype = reduce(torch.promote_types, (image.dtype for image in images))
        y = torch.empty_like(images[0], dtype=dtype)
        told = *launch.geometry, is_rectified
        launch(_kernel("normed_sum"), images, means, factors, shift, y, *told)
        ctx.save_for_backward(*found, *images)
        ctx.settings = launch, told, weights, len(affine) - weights
        return y

    @staticmethod
    @once
    def backward(ctx: Any, saved: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor | None, ...]:
        launch, told, weights, biases = ctx.settings
        means, inverses, factors, shift, *images = saved
        branches, channels = means.shape
        g = _alike([images[0], g])[1]
        given = tuple(images), means, factors, shift, inverses, g
        parts = means.new_empty(launch.programs, branches + 1, channels)
        launch(_kernel("gradient_sums"), *given, parts, *told)
        sums, of_images = parts.sum(0), tuple(map(torch.empty_like, images))
        count = g.numel() // channels
        launch(_kernel("gradients"), *given, sums, of_images, count, *told)
        of_weights = [sums[b] for b in range(weights)]
        of_biases = sums[branches].repeat(biases, 1).unbind() if biases else ()  # each may be kept
        return None, None, None, *of_images, *of_weights, *of_biases


def _kernel(name: str) -> Any:
    return getattr(_kernels(), name)


def _statistics(
    launch: Launch,
    norms: Sequence[BatchNorm],
    images: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return means, inverses, factors ``(B, C)`` and shift ``(C,)``; update the running ones."""
    parts, channels = image_moments(launch, images), images[0].shape[1]
    means, inverses, factors = parts.new_empty(3, len(images), channels).unbind()
    shift = parts.new_empty(channels)
    running: list[Any] = [[getattr(norm, name) for norm in norms] for name in _RUNNING]
    _kernel("statistics")[(-(-channels // _CHANNELS),)](
        *(parts, len(parts), weights, biases, tuple(running[0]), tuple(running[1])),
        *(means, inverses, factors, shift, channels, norms[0].eps, norms[0].momentum),
        *(images[0].numel() // channels, _CHANNELS, _PARTS),
    )
    torch._foreach_add_(running[2], 1)
    return means, inverses, factors, shift
