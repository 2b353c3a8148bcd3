"""Class-per-folder trees: their layouts, their split, and what is said of broken ones."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from repblocks.data import Augmentation, ImageFolderDataModule, ImageNetDataModule
from repblocks.data._folders import read_image
from repblocks.data._split import is_held_out
from repblocks.errors import ConfigurationError, DataError


def write_images(folder, count, value=100, mode="RGB", size=(20, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new(mode, size, (value,) * len(mode)).save(folder / f"{number:02}.png")


def module(root, **options):
    return ImageFolderDataModule(root=root, image_size=8, batch_size=2, **options)


def test_a_divided_tree_is_read_as_it_is(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        write_images(tmp_path / split / "cat", count)
        write_images(tmp_path / split / "dog" / "puppies", count)
    data = module(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    data.setup()
    assert [len(data.load(split)) for split in ("train", "val")] == [8, 4]
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 8, 8)
    assert set(targets.tolist()) <= {0, 1}


def test_an_undivided_tree_holds_out_the_same_share_of_each_class(tmp_path):
    write_images(tmp_path / "a", 10)
    write_images(tmp_path / "b", 20)
    data = module(tmp_path, held_out=0.2, seed=3)
    val, train = data.load("val"), data.load("train")
    names = [data.load("val").dataset.samples[index] for index in val.indices]
    assert [(path[-8:-4].replace("/", " ").strip(), target) for path, target in names] == [
        *[(f"a {n:02}", 0) for n in (4, 9)],
        *[(f"b {n:02}", 1) for n in (4, 9, 14, 19)],
    ]
    assert sorted([*val.indices, *train.indices]) == list(range(30))


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(100, 0.29, 29), (7, 0.5, 3), (3, 0.3, 0), (10, 0.999, 9)]
)
def test_a_held_out_share_is_rounded_down(count, fraction, expected):
    marks = is_held_out([5] * count + [2] * count, fraction)
    assert [sum(marks[:count]), sum(marks[count:])] == [expected] * 2
    assert marks[:count] == marks[count:]


def test_grey_and_palette_images_become_what_the_network_reads(tmp_path):
    write_images(tmp_path / "a", 3, value=51, mode="L")
    Image.new("P", (9, 30)).save(tmp_path / "a" / "9.png")
    for channels in (1, 3):
        mean, std = [0.5] * channels, [0.5] * channels
        data = module(tmp_path, in_channels=channels, mean=mean, std=std, held_out=0.5)
        images = torch.cat([images for images, _ in data.val_dataloader()])
        assert images.shape == (2, channels, 8, 8)
        assert torch.allclose(images[0], torch.tensor((51 / 255 - 0.5) / 0.5))
        assert torch.equal(images[1], torch.full((channels, 8, 8), -1.0))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_images_of_16_bits_are_scaled_in_training_and_prediction_alike(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "a" / f"1{name}")
    Image.fromarray(pixels).save(tmp_path / "a" / f"0{name}")
    data = module(tmp_path, held_out=0.5, crop_pct=1.0)
    (trained, _), (validated, _) = (data.load(split)[0] for split in ("train", "val"))
    predicted = read_image(str(tmp_path / "a" / f"1{name}"))
    for image in (trained, validated, predicted):
        assert np.array_equal(np.asarray(image), np.stack([pixels] * 3, 2))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_of_32_bits_are_refused(tmp_path, kind):
    (tmp_path / "a").mkdir()
    for number in range(2):
        image = Image.fromarray(np.full((8, 8), 300, kind))
        image.save(tmp_path / "a" / f"{number}.tif")
    with pytest.raises(DataError, match=r"a/1\.tif holds numbers of 32 bits"):
        list(module(tmp_path, held_out=0.5).val_dataloader())


@pytest.mark.parametrize("content", [b"no image", b"", None], ids=["text", "empty", "truncated"])
def test_a_corrupt_image_is_named(tmp_path, content):
    write_images(tmp_path / "train" / "a", 2)
    write_images(tmp_path / "val" / "a", 1)
    bad = tmp_path / "val" / "a" / "00.png"
    if content is None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(bad)
        content = bad.read_bytes()[:2000]
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"val/a/00\.png could not be read as an image"):
        list(module(tmp_path).val_dataloader())


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_image_is_named_in_one_line_by_worker_processes_too(tmp_path, split, num_workers):
    write_images(tmp_path / "train" / "a", 2)
    write_images(tmp_path / "val" / "a", 2)
    (tmp_path / split / "a" / "01.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    data = module(tmp_path, num_workers=num_workers)
    with pytest.raises(DataError, match=rf"\A.*{split}/a/01\.png could not be read .*\.\Z"):
        list(getattr(data, f"{split}_dataloader")())


def test_a_missing_tree_says_what_where_and_how(tmp_path):
    with pytest.raises(DataError, match=r"one folder a class.*no_such.*Set data.root"):
        module(tmp_path / "no_such").setup()


def test_a_tree_without_images_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no valid file for the classes a"):
        module(tmp_path).setup()


def test_a_missing_half_of_a_divided_tree_is_named(tmp_path):
    write_images(tmp_path / "train" / "a", 2)
    with pytest.raises(DataError, match=f"{tmp_path / 'val'}"):
        module(tmp_path).setup()


def test_different_classes_in_train_and_val_are_refused(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/c"):
        write_images(tmp_path / name, 1)
    with pytest.raises(DataError, match=r"val must have 2 .* has 2: missing b, not expected c"):
        module(tmp_path).setup()


def test_too_few_images_to_hold_one_out_are_refused(tmp_path):
    write_images(tmp_path / "a", 3)
    with pytest.raises(DataError, match=r"left for val of the 3 in .* held_out=0\.1"):
        module(tmp_path).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 1.0}, r"held_out must be between 0 and 1, got 1\.0"),
        ({"in_channels": 1}, r"each of 1 channels, got \[0\.485"),
        ({"std": [1.0]}, r"each of 3 channels.*and \[1\.0\]"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, .* got 'cubic'"),
        ({"crop_pct": 1.5}, r"crop_pct must be a number above 0 and at most 1, got 1\.5"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        module(tmp_path, **options)


@pytest.mark.parametrize("options", [{"interpolation": "cubic"}, {"crop_pct": 0}], ids=str)
def test_imagenet_refuses_what_folders_refuse(tmp_path, options):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        ImageNetDataModule(root=tmp_path, **options)


def test_imagenet_wants_its_thousand_folders(tmp_path):
    names = ImageNetInfo().label_names()
    for split in ("train", "val"):
        for name in names:
            write_images(tmp_path / split / name, 1, size=(1, 1))
    data = ImageNetDataModule(root=tmp_path, image_size=4, num_workers=0, batch_size=2)
    data.augmentation = Augmentation(random_resized_crop=0.08)
    data.setup()
    assert data.num_classes == 1000 == len(set(data.class_names))
    assert data.class_names[1] == "n01443537 goldfish, Carassius auratus"
    assert next(iter(data.train_dataloader()))[0].shape == (2, 3, 4, 4)
    (tmp_path / "val" / names[7]).rename(tmp_path / "val" / "cock")
    with pytest.raises(DataError, match=rf"1000 class .* missing {names[7]}, not expected cock"):
        ImageNetDataModule(root=tmp_path).setup("validate")
