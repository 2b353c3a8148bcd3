"""Each field changes the image in its own way; evaluation changes nothing at random."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from repblocks.data import Augmentation, SyntheticDataModule, evaluation_transform
from repblocks.errors import ConfigurationError

ALONE = [
    {"crop_padding": 4},
    {"random_resized_crop": 0.2},
    {"random_resized_crop": 0.2, "random_interpolation": True},
    {"horizontal_flip": 0.5},
    {"affine_degrees": 20},
    {"affine_translate": 0.2},
    {"affine_scale": 0.3},
    {"three_augment": True},
    {"rand_augment": "rand-m9-mstd0.5"},
    {"rand_augment": "rand-m7-n4-mstd0.5-inc1"},
    {"color_jitter": 0.4},
    {"random_erasing": 1.0},
    {"random_erasing": 1.0, "random_erasing_mode": "const"},
    {"cutout": 8},
]


def preprocessing(in_channels=3, **changes):
    data = SyntheticDataModule(image_size=16, in_channels=in_channels)
    return data.preprocessing | changes


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("fields", ALONE, ids=str)
def test_each_field_changes_images_and_keeps_their_format(image, fields, in_channels):
    values = preprocessing(in_channels)
    transform = Augmentation(**fields).build(values)
    results = [transform(image) for _ in range(60)]
    assert {tuple(result.shape) for result in results} == {(in_channels, 16, 16)}
    assert {result.dtype for result in results} == {torch.float32}
    assert len({result.numpy().tobytes() for result in results}) > 1


@pytest.mark.parametrize("in_channels", [1, 3])
def test_without_augmentation_training_sees_what_evaluation_sees(image, in_channels):
    values = preprocessing(in_channels)
    assert torch.equal(Augmentation().build(values)(image), evaluation_transform(values)(image))


@pytest.mark.parametrize("word", ["bilinear", "bicubic"])
def test_training_and_evaluation_resize_as_they_are_told(image, word):
    values = preprocessing(interpolation=word, input_size=[3, 11, 11])
    expected = image.resize((11, 11), Image.Resampling[word.upper()])
    normalised = (torch.tensor(np.asarray(expected)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    for transform in (evaluation_transform(values), Augmentation().build(values)):
        torch.testing.assert_close(transform(image), normalised)
    fields = {"random_resized_crop": 0.5, "rand_augment": "rand-m9-mstd0.5"}
    _, crop, randomly, *_ = Augmentation(**fields).build(values).transforms
    assert crop.interpolation.value == word
    assert {op.kwargs["resample"] for op in randomly.ops} == {Image.Resampling[word.upper()]}


def test_random_interpolation_draws_from_both():
    fields = {"random_resized_crop": 0.5, "rand_augment": "rand-m9-mstd0.5"}
    transform = Augmentation(**fields, random_interpolation=True).build(preprocessing())
    _, crop, randomly, *_ = transform.transforms
    assert {mode.value for mode in crop.interpolation} == {"bilinear", "bicubic"}
    both = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    assert {op.kwargs["resample"] for op in randomly.ops} == {both}


def test_flipping_alone_mirrors():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    flipped = Augmentation(horizontal_flip=1.0).build(preprocessing(1))(Image.fromarray(pixels))
    plain = evaluation_transform(preprocessing(1))(Image.fromarray(pixels))
    assert torch.equal(flipped, plain.flip(-1))


def test_erasing_to_const_fills_with_the_mean():
    white = Image.new("RGB", (16, 16), (255, 255, 255))
    transform = Augmentation(random_erasing=1.0, random_erasing_mode="const")
    result = transform.build(preprocessing())(white)
    assert result.unique().tolist() == [0.0, 2.0]


def test_cutout_is_a_square_of_the_mean():
    white = Image.new("RGB", (16, 16), (255, 255, 255))
    transform = Augmentation(cutout=6).build(preprocessing())
    for _ in range(20):
        rows, columns = (transform(white)[0] == 0).nonzero(as_tuple=True)
        assert len(rows) == 36
        assert rows.max() - rows.min() == columns.max() - columns.min() == 5
    with pytest.raises(ConfigurationError, match="smaller than images of 16 pixels, got 16"):
        Augmentation(cutout=16).build(preprocessing())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizontal_flip": 1.5}, r"horizontal_flip must be from 0 to 1, got 1\.5"),
        ({"cutout": -1}, "cutout must be from 0 to 1024, got -1"),
        (
            {"random_interpolation": True},
            "random_interpolation needs random_resized_crop, got none",
        ),
        ({"crop_padding": -1}, r"crop_padding must be from 0 to 1024, got -1"),
        ({"random_resized_crop": 0.0}, r"random_resized_crop must be from 0\.01 to 1, got 0\.0"),
        ({"affine_degrees": 200, "affine_scale": 1.0}, r"180, got 200; affine_scale .* got 1\.0"),
        ({"rand_augment": "m9"}, "rand_augment must look like .* got m9"),
        ({"rand_augment": "rand-q9"}, "got rand-q9"),
        ({"rand_augment": "rand-mx9"}, "got rand-mx9"),
        ({"random_erasing_mode": "noise"}, "random_erasing_mode must be pixel or const, got noise"),
    ],
)
def test_impossible_fields_are_all_named(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        Augmentation(**fields)


def test_preprocessing_is_plain_and_gives_the_same_transform_after_json(image):
    values = preprocessing()
    again = json.loads(json.dumps(values))
    assert again == values
    assert torch.equal(evaluation_transform(again)(image), evaluation_transform(values)(image))


def test_evaluation_resizes_crops_and_normalises(image):
    values = preprocessing(1, crop_pct=0.5, input_size=[1, 8, 8], mean=[0.25], std=[0.5])
    grey = np.asarray(image.convert("L"), dtype=np.float32)[4:12, 4:12]
    expected = (torch.tensor(grey)[None] / 255 - 0.25) / 0.5
    assert torch.allclose(evaluation_transform(values)(image), expected)


def test_transforms_travel_to_worker_processes(image):
    values = preprocessing(1)
    for transform in (evaluation_transform(values), Augmentation(**ALONE[0]).build(values)):
        assert pickle.loads(pickle.dumps(transform))(image).shape == (1, 16, 16)


def test_incomplete_preprocessing_is_refused():
    values = preprocessing()
    del values["std"], values["crop_mode"]
    with pytest.raises(ConfigurationError, match="preprocessing lacks crop_mode, std, got"):
        evaluation_transform(values)


def test_two_channels_are_refused():
    with pytest.raises(ConfigurationError, match=r"1 \(grey\) or 3 \(colour\).*got 2"):
        evaluation_transform(preprocessing(in_channels=3) | {"in_channels": 2})
