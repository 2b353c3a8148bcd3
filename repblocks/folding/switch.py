"""Fold a network of blocks: every block of it into its deployed form, in a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from repblocks.blocks import RepBlock
from repblocks.errors import NotFoldable


@dataclass(frozen=True)
class FoldedBlock:
    """What became of one block.

    Args:
        path: Where it stands in the network.
        block: Name of its class.
        parameters_before: Parameters of its training form.
        parameters_after: Parameters of its deployed form.
    """

    path: str
    block: str
    parameters_before: int
    parameters_after: int


def switch_blocks(model: nn.Module) -> list[FoldedBlock]:
    """Switch every block of a network to its deployed form, in place.

    Raises:
        NotFoldable: if a block cannot be switched; the message names it, and no block is switched.
    """
    plans: dict[RepBlock, tuple[str, Mapping[str, nn.Module | None]]] = {}
    replaced: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, RepBlock) or module.is_deployed or module in plans:
            continue
        if f"{path}.".startswith(replaced):  # a block inside another one's training form
            continue
        try:
            plans[module] = path, module.deployed_parts()
        except NotFoldable as error:
            raise NotFoldable(
                f"Cannot fold {path or 'the model'} ({type(module).__name__}): {error.reason}"
            ) from error
        prefix = f"{path}." if path else ""
        replaced += tuple(f"{prefix}{name}." for name in plans[module][1])
    return [_switch(block, path, parts) for block, (path, parts) in plans.items()]


def _switch(block: RepBlock, path: str, parts: Mapping[str, nn.Module | None]) -> FoldedBlock:
    before = _count(block)
    block.become(parts)
    return FoldedBlock(path, type(block).__name__, before, _count(block))


def fold_blocks(model: nn.Module) -> tuple[nn.Module, list[FoldedBlock]]:
    """Return a folded copy of a network in evaluation mode, and what became of each block.

    Raises:
        NotFoldable: if a block cannot be folded; ``model`` is not changed in any case.
    """
    folded = copy.deepcopy(model).eval()
    return folded, switch_blocks(folded)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
