"""Layers whose weights the code around them makes anew in each call: their last weights stay."""

from __future__ import annotations

from collections.abc import Iterator, Set

from torch import nn

from repblocks.errors import NotFoldable
from repblocks.folding.borrowing import memory_of_weights
from repblocks.folding.flow import Step
from repblocks.folding.planning import is_layer
from repblocks.folding.rewriting import Placed
from repblocks.folding.sites import Sites


def remade(
    sites: Sites, model: nn.Module, folded: Set[Step], borrowed: Set[int]
) -> Iterator[Placed]:
    """Yield the layers that are put in the place of the code which makes their weights.

    Args:
        sites: The places in a flow.
        model: The model that was traced: its parameters lie in borrowed memory, unless code has
            set others.
        folded: Steps that are computed at once with others.
        borrowed: The memory of the weights of the original.
    """
    if borrowed.isdisjoint(memory_of_weights(model)):
        return  # the model is a copy
    for step, candidates in sites.region.candidates.items():
        if step in folded or not _is_remade(step, borrowed):
            continue
        for candidate in candidates:
            if candidate.interior != {step} or not is_layer(step, candidate):
                continue
            try:
                yield Placed(step, candidate, sites.find(step, candidate, frozenset()))
            except NotFoldable as error:
                sites.region.unplaced[step] = error
            break


def _is_remade(step: Step, borrowed: Set[int]) -> bool:
    if step.module is None or step.is_opaque:
        return False
    own = [w for w in step.module.parameters() if type(w) is nn.Parameter]
    return any(w.untyped_storage()._cdata not in borrowed for w in own)
