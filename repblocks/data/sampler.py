"""Which images a process reads and in which order, given by the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from repblocks.data._seeding import seed_from
from repblocks.errors import ConfigurationError


class EpochSampler(Sampler[tuple[int, ...]]):
    """Yield the ``(epoch, index)`` pairs of one process, in an order given by seed and epoch.

    The pair reaches the data set, so that augmentation can depend on the epoch even in worker
    processes that live longer than one. All processes yield the same number of pairs and never
    the same one: what does not divide by ``world_size`` sits out, other images in each epoch.

    Args:
        num_samples: How many images the data set has.
        seed: Of the order.
        shuffle: Whether the order changes with the epoch, or is that of the data set.
        rank: Of this process.
        world_size: How many processes share the images.
        epoch: The epoch of the next pass, until ``set_epoch`` says otherwise.
        start: How many pairs the passes of this very ``epoch`` leave out, because they were
            consumed before training was interrupted. All other epochs are complete.
        repeats: How often an epoch shows each of its images, in a row over the processes; it has
            as many fewer of them. Pairs after an image's first become ``(epoch, index, number)``,
            so that they are augmented otherwise (Hoffer et al., Augment Your Batch, CVPR 2020,
            https://arxiv.org/abs/1901.09335).
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        start: int = 0,
        repeats: int = 1,
    ) -> None:
        self.num_samples = num_samples
        self.repeats = repeats
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = epoch
        self.start = start

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next pass, which Lightning does before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Return the pairs in a complete epoch, also when the next pass is the rest of one."""
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        epoch, start = self.epoch, self.start
        order = self._order(epoch)
        mine = range(self.num_samples)[self.rank :: self.world_size][: len(self)][start:]
        return iter([self._place(epoch, order, position) for position in mine])

    def _place(self, epoch: int, order: list[int], position: int) -> tuple[int, ...]:
        shown, number = divmod(position, self.repeats)
        return (epoch, order[shown], number) if number else (epoch, order[shown])

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_samples))
        generator = torch.Generator().manual_seed(seed_from(self.seed, epoch))
        return torch.randperm(self.num_samples, generator=generator).tolist()


class ShardedBatches(Sampler[list[int]]):
    """Yield the batches of indices that one process evaluates: every image once over all of them.

    Every process gets the same number of batches, because DistributedDataParallel communicates
    in each forward, in evaluation too, and would wait for ever for a batch more. A process with
    one image less than the others therefore halves its last batch where that is needed.

    Args:
        num_samples: How many images the data set has.
        batch_size: The size of all batches but the last ones.
        rank: Of this process.
        world_size: How many processes share the images.

    Raises:
        ConfigurationError: if no such division exists, which needs very few images.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        largest = -(-num_samples // world_size)
        num_batches = -(-largest // batch_size)
        mine = range(num_samples)[rank::world_size]
        batches = [
            list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)
        ] or [[]]
        if len(batches) < num_batches:
            middle = len(batches[-1]) // 2
            batches[-1:] = [batches[-1][:middle], batches[-1][middle:]]
        if not all(batches):
            raise ConfigurationError(
                f"{num_samples} validation images cannot be shared by {world_size} processes in"
                f" batches of {batch_size} so that each gets as many batches. Use a larger"
                " data.batch_size or fewer processes."
            )
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
