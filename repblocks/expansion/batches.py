"""Read the inputs of a model out of batches, which may carry labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor, nn

from repblocks.errors import ConfigurationError


def read_inputs(data: Iterable[Any], count: int | None = None) -> Iterator[Tensor]:
    """Give the inputs of the first batches, at least one.

    Args:
        data: Batches: tensors, or tuples or lists that start with a tensor, such as
            ``(images, labels)``.
        count: Batches that are read at most; None for all.

    Raises:
        ConfigurationError: if ``data`` is a tensor, has no batch or one of another kind, or
            ``count`` is less than 1.
    """
    if isinstance(data, Tensor):
        raise ConfigurationError(
            f"data must be an iterable of batches, got one tensor of shape {tuple(data.shape)}; "
            "put it in a list."
        )
    if count is not None and count < 1:
        raise ConfigurationError(f"The number of batches must be at least 1, got {count}.")
    number = -1
    for number, batch in enumerate(islice(data, count)):
        yield _input(batch, number)
    if number < 0:
        raise ConfigurationError("data must hold at least 1 batch, got 0.")


def fitted(model: nn.Module, x: Tensor) -> Tensor:
    """Return a batch on the device and in the dtype of a model's weights."""
    own = next((p for p in model.parameters() if p.is_floating_point()), x)
    return x.to(own.device, own.dtype if x.is_floating_point() else x.dtype)


def _input(batch: Any, number: int) -> Tensor:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor):
        raise ConfigurationError(
            "A batch must be a tensor, or a tuple or list that starts with one, such as (images, "
            f"labels); batch {number} is {type(batch).__name__} with {type(first).__name__}."
        )
    return first
