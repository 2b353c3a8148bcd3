"""What the official code of a block calls its branches, in whichever network the block stands.

A block says it itself: ``official_names`` are rules on the names inside of it. Before them comes
``of_official``, where it has one, which turns what a name alone does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from repblocks.blocks import ConvBlock
from repblocks.blocks.plain import PlainBlock
from repblocks.models._rules import Rules, norm_folded, renamed

_PLAIN: Rules = ((r"^conv\.", "branches.conv."), (r"^bn\.", "branches.norm."))


@runtime_checkable
class _Named(Protocol):
    @property
    def official_names(self) -> Rules: ...


@runtime_checkable
class _Adapted(Protocol):
    def of_official(self, state: dict[str, Tensor]) -> dict[str, Tensor]: ...


def named_in_blocks(state: Mapping[str, Tensor], root: nn.Module) -> dict[str, Tensor]:
    """Return a state dict in which what lies inside of the conv blocks has our names.

    A convolution ``conv`` and its norm ``bn`` are a plain block; in the place of another block they
    become the kernel that it is to compute.

    Args:
        state: Under our names down to the blocks; it is not changed.
        root: The network, in training or deployed form.

    Raises:
        CheckpointError: if two names become one, or weights cannot be those of the block.
    """
    found = dict(state)
    for path, block in root.named_modules():
        if isinstance(block, ConvBlock):
            inside = f"{path}."
            own = {name: found.pop(name) for name in list(found) if name.startswith(inside)}
            own = _named({name.removeprefix(inside): value for name, value in own.items()}, block)
            found |= {f"{inside}{name}": value for name, value in own.items()}
    return found


def _named(own: dict[str, Tensor], block: ConvBlock) -> dict[str, Tensor]:
    if "conv.weight" in own and "conv.bias" not in own and "bn.running_var" in own:
        return renamed(own, _PLAIN) if isinstance(block, PlainBlock) else _as_kernel(own)
    if isinstance(block, _Adapted):
        own = block.of_official(own)
    return renamed(own, block.official_names) if isinstance(block, _Named) else own


def _as_kernel(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bias = torch.zeros_like(own["bn.running_var"])
    weight, bias = norm_folded({**own, "conv.bias": bias}, "conv", "bn", nn.BatchNorm2d(1).eps)
    rest = {name: value for name, value in own.items() if not name.startswith(("conv.", "bn."))}
    return {**rest, "conv.weight": weight, "conv.bias": bias}
