"""The loader of every data module: it resumes in the middle of an epoch, and names a broken image.

torch raises the error of a worker process anew, with the whole stack for its message. So a broken
image leaves the worker as a value in place of its batch, and is raised here, in its own words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from repblocks.errors import DataError

Place = TypeVar("Place")
Samples = list[tuple[Tensor, int]]


def read_batch(
    read: Callable[[Place], tuple[Tensor, int]], places: Iterable[Place]
) -> Samples | DataError:
    """Read the samples of a batch, or give what is wrong with one of them."""
    try:
        return [read(place) for place in places]
    except DataError as error:
        return error


def collate(samples: Samples | DataError) -> Any:
    """Stack samples to a batch; an error stays what it is."""
    return samples if isinstance(samples, DataError) else default_collate(samples)


class ResumableLoader(DataLoader[Any]):
    """A loader that resumes in the middle of an epoch, which Lightning looks for these methods.

    The position is part of the data module's state, which also knows what Lightning consumed:
    with workers the loader itself is ahead of it.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises a private class
        """Yield batches.

        Raises:
            DataError: in place of the batch that it is about.
        """
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, the data module's state holds the position."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing, the data module has placed the sampler already."""
