"""The samplers: every image once over all processes, and an order given by seed and epoch."""

import pytest

from repblocks.data.sampler import EpochSampler, ShardedBatches
from repblocks.errors import ConfigurationError


def indices(sampler):
    return [index for _, index in sampler]


def test_an_epoch_is_a_permutation_given_by_seed_and_epoch():
    sampler = EpochSampler(100, seed=3)
    sampler.set_epoch(5)
    first = list(sampler)
    assert first == list(sampler)
    assert {epoch for epoch, _ in first} == {5}
    assert sorted(index for _, index in first) == list(range(100))
    orders = {
        tuple(indices(EpochSampler(100, seed=s, epoch=e))) for s in range(4) for e in range(4)
    }
    assert len(orders) == 16


def test_without_shuffling_the_order_is_that_of_the_data():
    assert list(EpochSampler(3, shuffle=False, epoch=2)) == [(2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize(("num_samples", "world_size"), [(12, 3), (14, 3), (5, 4), (3, 4)])
def test_processes_share_an_epoch_equally_and_without_overlap(num_samples, world_size):
    samplers = [
        EpochSampler(num_samples, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    shares = [indices(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {num_samples // world_size}
    assert {len(sampler) for sampler in samplers} == {num_samples // world_size}
    seen = [index for share in shares for index in share]
    assert len(set(seen)) == len(seen)


def test_what_does_not_divide_is_another_image_in_each_epoch():
    left_out = set()
    for epoch in range(20):
        shares = [indices(EpochSampler(7, rank=r, world_size=2, epoch=epoch)) for r in (0, 1)]
        left_out |= set(range(7)).difference(*shares)
    assert len(left_out) > 3


def test_a_start_leaves_out_pairs_of_its_own_epoch_only():
    whole = EpochSampler(10, seed=1, epoch=4)
    resumed = EpochSampler(10, seed=1, epoch=4, start=6)
    resumed.set_epoch(4)
    assert list(resumed) == list(whole)[6:]
    assert len(resumed) == 10
    for sampler in (whole, resumed):
        sampler.set_epoch(5)
    assert list(resumed) == list(whole)
    resumed.set_epoch(4)
    assert len(list(resumed)) == 10


@pytest.mark.parametrize("batch_size", [2, 3, 8, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_samples", [9, 16, 17, 33])
def test_every_image_is_evaluated_once_in_equally_many_batches(num_samples, world_size, batch_size):
    ranks = [
        ShardedBatches(num_samples, batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    everything = [index for batches in ranks for batch in batches for index in batch]
    assert sorted(everything) == list(range(num_samples))
    assert all(0 < len(batch) <= batch_size for batches in ranks for batch in batches)
    assert [len(list(batches)) for batches in ranks] == [len(batches) for batches in ranks]


def test_a_single_process_evaluates_full_batches_in_order():
    assert list(ShardedBatches(7, 3)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(("num_samples", "batch_size", "world_size"), [(3, 8, 4), (5, 1, 2)])
def test_images_that_cannot_be_shared_are_refused(num_samples, batch_size, world_size):
    with pytest.raises(
        ConfigurationError,
        match=f"{num_samples} validation images .* {world_size} processes .* of {batch_size} ",
    ):
        ShardedBatches(num_samples, batch_size, rank=world_size - 1, world_size=world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repeated_images_are_told_apart_and_go_to_different_processes(world_size):
    samplers = [
        EpochSampler(24, rank=rank, world_size=world_size, epoch=2, repeats=3)
        for rank in range(world_size)
    ]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {24 // world_size}
    shown = [place for share in shares for place in share]
    assert len(set(shown)) == 24
    counts = {index: sum(place[1] == index for place in shown) for _, index, *_ in shown}
    assert counts == dict.fromkeys(counts, 3)
    assert len(counts) == 8
    assert {place[2:] for place in shown} == {(), (1,), (2,)}
    if world_size == 3:
        assert all(len({place[1] for place in share}) == 8 for share in shares)


def test_repeats_that_do_not_divide_show_as_many_images():
    sampler = EpochSampler(10, repeats=3)
    assert len(list(sampler)) == len(sampler) == 10
    assert list(EpochSampler(10, repeats=3, start=4)) == list(sampler)[4:]
