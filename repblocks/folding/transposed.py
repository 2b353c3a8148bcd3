"""Fold what scales and shifts each channel into the transposed convolution before it.

A transposed convolution is not an affine map of the kind that this package composes, but its output
channels are scaled by its kernel all the same: ``W'[:, o] = s[o] * W[:, o]``, ``b' = s * b + t``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repblocks.folding.flow import Step
from repblocks.folding.operation import Kind
from repblocks.folding.operations import channel_arithmetic
from repblocks.folding.region import Region
from repblocks.folding.sites import Emptied, Sites

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_FORWARDS = {cls.forward for cls in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)}


@dataclass(frozen=True, eq=False)
class TakenIn:
    """A scale and shift that a transposed convolution takes in.

    Args:
        conv: The step of the convolution.
        scale: The step of what is taken in, which becomes the identity.
        factor: ``(C_out,)``.
        shift: ``(C_out,)``.
    """

    conv: Step
    scale: Step
    factor: Tensor
    shift: Tensor

    @property
    def emptied(self) -> Emptied:
        """What becomes the identity."""
        return Emptied(self.scale, self.conv)

    def layer(self) -> nn.Module:
        """Return the new transposed convolution."""
        conv = self.conv.module
        new = copy.deepcopy(conv)
        if not isinstance(new, Transposed):
            raise TypeError(f"Expected a transposed convolution, got {type(new).__name__}.")
        weight, factor = new.weight, self.factor
        groups = factor.view(new.groups, 1, -1, *(1,) * (weight.ndim - 2))
        exact = weight.detach().to(factor)
        exact = exact.view(new.groups, -1, *weight.shape[1:]) * groups
        bias = torch.zeros_like(factor) if new.bias is None else new.bias.detach().to(factor)
        shifted = factor * bias + self.shift
        new.weight = nn.Parameter(exact.flatten(0, 1).to(weight), weight.requires_grad)
        new.bias = nn.Parameter(shifted.to(weight), weight.requires_grad)
        return new


def transposed(region: Region, folded: Set[Step], sites: Sites) -> Iterator[TakenIn]:
    """Yield what transposed convolutions can take in, of what was not folded."""
    for step, operation in region.operations.items():
        conv = operation.operands[0]
        if step in folded or operation.kind not in (Kind.NORM, Kind.SCALE):
            continue
        is_alone = set(region.readers[conv]) == {step} and conv not in region.outputs
        if _is_transposed(conv) and is_alone and sites.empties(step) and sites.empties(conv):
            arithmetic = channel_arithmetic(operation, conv)
            if arithmetic is not None:
                yield TakenIn(conv, step, *arithmetic)


def _is_transposed(step: Step) -> bool:
    return step.module is not None and type(step.module).forward in _FORWARDS
