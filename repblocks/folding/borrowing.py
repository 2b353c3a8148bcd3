"""Look into a model without copying its weights, and own in the end what was not replaced."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import nn

from repblocks.folding.state import tensors_of


def memory_of_weights(model: nn.Module) -> set[int]:
    """Return the memory of a model's parameters."""
    return {p.untyped_storage()._cdata for p in model.parameters()}


def own(model: nn.Module, borrowed: Set[int]) -> None:
    """Give a model memory of its own for all tensors that lie in borrowed memory.

    Tensors that shared memory with each other still do.
    """
    copies: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors_of(model):
        storage = tensor.untyped_storage()
        if storage._cdata in borrowed:
            if storage._cdata not in copies:
                copies[storage._cdata] = storage.clone()  # type: ignore[no-untyped-call]
            place = (tensor.storage_offset(), tensor.shape, tensor.stride())
            empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            tensor.data = empty.set_(copies[storage._cdata], *place)
