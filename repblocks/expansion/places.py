"""The convolutions of a network that a block can stand for, and what they compute."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra import AffineMap, ConvKernel, apply, is_batch_norm
from repblocks.algebra.kernel import Conv, conv_padding
from repblocks.algebra.rules import has_rule
from repblocks.blocks import RepBlock
from repblocks.expansion.modes import evaluating
from repblocks.folding.chains import ConvChain, conv_chains


@dataclass(frozen=True, eq=False)
class Place:
    """A convolution of a network, with the BatchNorm that alone reads it.

    Args:
        path: Where the convolution stands.
        conv: The convolution.
        norm_path: Where the BatchNorm stands; None if there is none.
        norm: The BatchNorm.
        obstacle: Why no block can stand here, as a sentence; empty if one can.
        has_bias: Whether the convolution has a bias when it is folded.
    """

    path: str
    conv: Conv
    norm_path: str | None = None
    norm: BatchNorm | None = None
    obstacle: str = ""
    has_bias: bool = True

    @property
    def requires_grad(self) -> bool:
        """Whether convolution or BatchNorm is trained."""
        modules = [module for module in (self.conv, self.norm) if module is not None]
        return any(p.requires_grad for module in modules for p in module.parameters())

    def kernel(self) -> ConvKernel:
        """Return what convolution and BatchNorm compute in evaluation mode, in float64.

        Raises:
            NotFoldable: if the BatchNorm has no running statistics.
        """
        device = self.conv.weight.device
        # Metal has no float64.
        like = torch.empty(0, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        value = apply(self.conv, AffineMap.identity(self.conv.in_channels), like)
        if self.norm is not None:
            value = apply(copy.deepcopy(self.norm).eval(), value, like)
        return ConvKernel.from_affine(value, like)


def find_places(model: nn.Module, example_input: Any) -> Iterator[Place]:
    """Give all convolutions of a network, in the order of its modules.

    Args:
        model: In any mode; is not changed.
        example_input: A tensor, a tuple of the model's positional arguments, or None.
    """
    with evaluating(model):
        chains = {chain.conv: chain for chain in conv_chains(model, example_input)}
    modules = dict(model.named_modules())
    owners = _owners(modules)
    for path, conv in modules.items():
        if isinstance(conv, Conv):
            chain = chains.get(path, ConvChain(path))
            norm_path = chain.norm
            norm = modules.get(norm_path) if norm_path else None
            if norm is None or not is_batch_norm(norm):
                norm_path = norm = None
            obstacle = owners.get(conv, "") or _obstacle(conv, norm, path, path in chains)
            has_bias = conv.bias is not None or chain.is_normalised
            yield Place(path, conv, norm_path, norm, obstacle, has_bias)


def _owners(modules: Mapping[str, nn.Module]) -> dict[nn.Module, str]:
    """Say of each module inside a block in training form that it is."""
    return {
        module: f"It is a part of {path or 'the model'}, a {type(block).__name__}."
        for path, block in modules.items()
        if isinstance(block, RepBlock) and not block.is_deployed
        for module in block.modules()
    }


def _obstacle(conv: Conv, norm: BatchNorm | None, path: str, is_followed: bool) -> str:
    """Say why no block can stand in the place of a convolution; empty if one can."""
    hooked = [m for m in (conv, norm) if m and (m._forward_hooks or m._forward_pre_hooks)]
    if not path:
        return "It is the model itself, and not a part of one."
    if hooked:
        return f"The forward hooks of {type(hooked[0]).__name__} would be lost; remove them."
    if not is_followed:
        return "It is not called exactly once, or by code that cannot be followed."
    if not has_rule(conv):
        return f"{type(conv).__name__} convolves in a way of its own."
    if conv.padding_mode != "zeros":
        return f"Blocks pad with zeros, its padding mode is {conv.padding_mode!r}."
    if any(low != high for low, high in conv_padding(conv)):
        return f"Blocks pad both sides alike, it pads {conv_padding(conv)}."
    return ""
