"""Fold a network that timm's registry can build, in the way in which it can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repblocks.blocks import RepBlock
from repblocks.folding.fold import fold
from repblocks.folding.fold_report import FoldReport
from repblocks.folding.switch import FoldedBlock, fold_blocks
from repblocks.models import repblocks_timm

_ANY = repblocks_timm.__name__


@dataclass(frozen=True, eq=False)
class FoldedNetwork:
    """A folded network, and what builds it without weights.

    Args:
        model: In evaluation mode.
        recipe: ``name`` and ``kwargs`` in timm's registry; with ``deploy=True`` this form.
        blocks: What became of each block, where blocks were folded.
        report: What became of the whole, where it was folded as a whole.
    """

    model: nn.Module
    recipe: dict[str, Any]
    blocks: tuple[FoldedBlock, ...] = ()
    report: FoldReport | None = None


def fold_network(
    model: nn.Module, name: str, kwargs: Mapping[str, Any], example_input: Tensor
) -> FoldedNetwork:
    """Fold a copy of a network.

    One that was written with blocks has a deployed form of its own, and is folded block by block;
    any other is folded as a whole.

    Args:
        model: In evaluation mode.
        name: In timm's registry.
        kwargs: What it was built with.
        example_input: ``(N, C, H, W)`` images.

    Raises:
        NotFoldable: if a block cannot be folded.
        VerificationError: if the folded network is another function.
    """
    if name != _ANY and any(isinstance(module, RepBlock) for module in model.modules()):
        folded, blocks = fold_blocks(model)
        return FoldedNetwork(folded, {"name": name, "kwargs": dict(kwargs)}, tuple(blocks))
    arguments = dict(kwargs) if name == _ANY else {"name": name, **kwargs}
    arguments.pop("weights", None)
    folded = fold(model, example_input)
    report: FoldReport = folded.fold_report  # type: ignore[assignment] # an attribute of a module
    return FoldedNetwork(folded, {"name": _ANY, "kwargs": arguments}, (), report)
