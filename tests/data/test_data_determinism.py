"""Augmentation depends on (seed, epoch, index), and on nothing else in the process."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from repblocks.data import Augmentation, SyntheticDataModule
from repblocks.errors import ConfigurationError

EVERYTHING = Augmentation(
    random_resized_crop=0.3,
    horizontal_flip=0.5,
    affine_degrees=10,
    three_augment=True,
    rand_augment="rand-m9-n2-mstd0.5",
    color_jitter=0.3,
    random_erasing=1.0,
)
SIZE = 12


def module(rank=0, world_size=1, **options):
    """One class an image, so that the target says which image it is."""
    options = {"batch_size": 4, "augmentation": EVERYTHING, **options}
    data = SyntheticDataModule(num_classes=SIZE, image_size=16, train_size=SIZE, **options)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, current_epoch=0)
    return data


def images_of_epoch(loader, epoch):
    loader.sampler.set_epoch(epoch)
    pairs = [pair for batch in loader for pair in zip(*batch, strict=True)]
    return {int(target): image for image, target in pairs}


def disturb():
    random.seed(1)
    torch.manual_seed(torch.initial_seed() + 1)


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def epochs():
    loader = module().train_dataloader()
    return [images_of_epoch(loader, epoch) for epoch in (0, 1)]


def test_each_epoch_has_every_image_and_augments_it_anew(epochs):
    assert [len(epoch) for epoch in epochs] == [SIZE, SIZE]
    assert not any(torch.equal(epochs[0][key], epochs[1][key]) for key in epochs[0])


def test_workers_change_nothing(epochs):
    loader = module(num_workers=2).train_dataloader()
    for number, epoch in enumerate(epochs):
        assert_same(images_of_epoch(loader, number), epoch)


def test_order_and_batch_size_change_nothing(epochs):
    disturb()
    assert_same(images_of_epoch(module(batch_size=3).train_dataloader(), 1), epochs[1])


def test_processes_change_nothing_and_share_all_images(epochs):
    shares = [
        images_of_epoch(module(rank, 2, batch_size=3).train_dataloader(), 1) for rank in (0, 1)
    ]
    assert not shares[0].keys() & shares[1].keys()
    assert_same(shares[0] | shares[1], epochs[1])


def test_another_seed_changes_every_image(epochs):
    other = images_of_epoch(module(seed=1).train_dataloader(), 0)
    assert not any(torch.equal(other[key], epochs[0][key]) for key in other)


def test_the_state_of_the_process_is_left_alone():
    def state():
        _, keys, *rest = np.random.get_state()  # noqa: NPY002
        return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()

    data = module()
    np.random.normal()  # noqa: NPY002  # leaves the second of a pair in NumPy's state
    before = state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert len(list(loader)) == len(loader)
    assert state() == before


def test_an_error_in_a_transform_leaves_the_state_of_the_process_alone():
    data = module()
    dataset = data.train_dataloader().dataset
    dataset.transform = lambda _: random.random() / 0
    before = random.getstate()
    with pytest.raises(ZeroDivisionError):
        dataset[0, 0]
    assert random.getstate() == before


def test_lightnings_sequential_sampler_for_overfitting_finds_the_images_of_epoch_0(epochs):
    dataset = module().train_dataloader().dataset
    assert torch.equal(dataset[3][0], epochs[0][3])


def test_validation_is_the_same_every_time_and_shared_without_duplicates():
    whole = torch.cat([images for images, _ in module(val_size=10).val_dataloader()])
    shares = [
        torch.cat([images for images, _ in module(rank, 2, val_size=10).val_dataloader()])
        for rank in (0, 1)
    ]
    assert torch.equal(whole[0::2], shares[0])
    assert torch.equal(whole[1::2], shares[1])


def test_batches_are_float_images_and_integer_targets():
    for loader in (module().train_dataloader(), module().val_dataloader()):
        images, targets = next(iter(loader))
        assert (images.dtype, images.shape) == (torch.float32, (4, 3, 16, 16))
        assert (targets.dtype, targets.shape) == (torch.int64, (4,))


def test_training_drops_an_incomplete_batch():
    loader = module(batch_size=5).train_dataloader()
    assert [len(targets) for _, targets in loader] == [5, 5] == [5] * len(loader)


def test_a_batch_larger_than_the_share_of_a_process_is_refused():
    with pytest.raises(ConfigurationError, match=r"batch_size is 7, .* 2 processes .* 6 of 12 "):
        module(world_size=2, batch_size=7).train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"in_channels": 2}, "in_channels must be 1 or 3, got 2"),
        ({"val_size": 0, "image_size": -2}, "image_size is -2; val_size is 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        SyntheticDataModule(**options)
