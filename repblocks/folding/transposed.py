"""Fold what scales and shifts each channel into the transposed convolution before it.

A transposed convolution is not an affine map of the kind that this package composes, but its output
channels are scaled by its kernel all the same: ``W'[:, o] = s[o] * W[:, o]``, ``b' = s * b + t``.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repblocks.algebra.normalization import forward_of
from repblocks.folding.flow import Step
from repblocks.folding.operation import Kind, numel
from repblocks.folding.operations import channel_arithmetic
from repblocks.folding.region import Region
from repblocks.folding.sites import Emptied, Sites

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_CLASSES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FORWARDS = {cls.forward: cls for cls in _CLASSES}


@dataclass(frozen=True, eq=False)
class TakenIn:
    """What a transposed convolution takes in.

    Args:
        conv: The step of the convolution.
        emptied: The scales and shifts that are taken in and become the identity, in order.
        factor: ``(C_out,)``, all of them together.
        shift: ``(C_out,)``.
    """

    conv: Step
    emptied: tuple[Emptied, ...]
    factor: Tensor
    shift: Tensor

    @property
    def scales(self) -> list[Step]:
        """The steps that are taken in."""
        return [one.step for one in self.emptied]

    def layer(self) -> nn.Module:
        """Return the new transposed convolution, one of torch's own."""
        conv = self.conv.module
        if not isinstance(conv, Transposed):
            raise TypeError(f"Expected a transposed convolution, got {type(conv).__name__}.")
        new = _like(conv)
        weight, factor = conv.weight.detach(), self.factor
        groups = factor.view(conv.groups, 1, -1, *(1,) * (weight.ndim - 2))
        exact = weight.to(factor)
        exact = exact.view(conv.groups, -1, *weight.shape[1:]) * groups
        bias = torch.zeros_like(factor) if conv.bias is None else conv.bias.detach().to(factor)
        shifted = factor * bias + self.shift
        is_trained = any(parameter.requires_grad for parameter in conv.parameters())
        new.weight = nn.Parameter(exact.flatten(0, 1).to(weight), is_trained)
        new.bias = nn.Parameter(shifted.to(weight), is_trained)
        return new.eval()


def _like(conv: Transposed) -> Transposed:
    """Return a transposed convolution of the same shape, without values."""
    new: Transposed = _FORWARDS[type(conv).forward](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type] # one number an axis
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.output_padding,  # type: ignore[arg-type]
        conv.groups,
        dilation=conv.dilation,  # type: ignore[arg-type]
        device=torch.device("meta"),
    )
    return new


def transposed(region: Region, folded: Set[Step], sites: Sites) -> Iterator[TakenIn]:
    """Yield what transposed convolutions can take in, of what was not folded."""
    for conv in region.readers:
        if not is_transposed(conv) or not sites.empties(conv) or conv.shape is None:
            continue
        factor = torch.ones(conv.shape[1], dtype=torch.float64)
        shift = torch.zeros_like(factor)
        emptied: list[Emptied] = []
        for step, operand in _only_readers(conv, region):
            arithmetic = channel_arithmetic(region.operations[step], operand)
            if step in folded or step.is_aliased or arithmetic is None:
                break
            if region.operations[step].kind is not Kind.MOVE:
                if not sites.empties(step):
                    break
                emptied.append(Emptied(step, operand))
            factor, shift = arithmetic[0] * factor, arithmetic[0] * shift + arithmetic[1]
        if emptied:
            yield TakenIn(conv, tuple(emptied), factor, shift)


def _only_readers(step: Step, region: Region) -> Iterator[tuple[Step, Step]]:
    """Yield the affine operation that alone reads a step, with the step, and so on."""
    while step not in region.outputs and len(set(region.readers[step])) == 1:
        (reader,) = set(region.readers[step])
        if reader not in region.operations:
            return
        yield reader, step
        step = reader


def macs_of_transposed(step: Step) -> int:
    """Count the multiply-adds of a transposed convolution: each of its inputs times a kernel."""
    module, read = step.module, step.args[0]
    if not isinstance(module, Transposed) or not isinstance(read, Step):
        return 0
    return numel(read.shape) * module.weight[0].numel()


def is_transposed(step: Step) -> bool:
    """Tell whether a step is a transposed convolution."""
    return step.module is not None and forward_of(step.module) in _FORWARDS
