"""Images that are missing, broken or of other classes, as the commands meet them."""

import contextlib
import gzip
import logging
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from torchvision import datasets
from true_formats import write_cifar, write_fashion

from repblocks.cli import deploy, train
from repblocks.data import FashionMNISTDataModule

QUICK = [
    *("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.accelerator=cpu"),
    *("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"),
    *("data.batch_size=2", "data.num_workers=0", "export=weights", "output=run"),
]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; gives what it printed, or wrote to stderr if it failed."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(main, *arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["repblocks", *arguments])
        with pytest.raises(SystemExit, match=str(code)) if code else contextlib.nullcontext():
            main()
        out, error = capsys.readouterr()
        return error if code else out

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def offer_cifar(origin, source, key, monkeypatch):
    """Stand in for the download of torchvision's CIFAR; gives the list of downloads."""
    folder, downloads = write_cifar(origin, source, key, monkeypatch), []

    def download(url, root, **_):
        downloads.append(url)
        shutil.copytree(folder, Path(root) / source.base_folder)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    return downloads


def offer_fashion(origin, monkeypatch):
    write_fashion(origin)
    downloads = []

    def download(url, download_root, filename, **_):
        name = filename.removesuffix(".gz")
        packed = origin / filename
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else None
        (Path(download_root) / name).write_bytes(content or (origin / name).read_bytes())
        downloads.append(url)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", download)
    return downloads


@pytest.mark.parametrize(
    ("name", "source", "key"),
    [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")],
)
def test_training_downloads_cifar(command, tmp_path_factory, monkeypatch, name, source, key):
    downloads = offer_cifar(tmp_path_factory.mktemp("origin"), source, key, monkeypatch)
    data = [f"data={name}", "data.root=a", "data.download=true"]
    command(train.main, *data, "model=repvgg_tiny", "deploy=false", *QUICK)
    assert downloads == [source.url]


def test_each_command_downloads_what_is_missing(command, tmp_path_factory, monkeypatch):
    downloads = offer_fashion(tmp_path_factory.mktemp("origin"), monkeypatch)
    command(train.main, "data=fashion_mnist", "data.root=a", "data.download=true", *QUICK)
    assert len(downloads) == 4, "once, and not again for the deployment"
    checkpoint = "ckpt_path=run/checkpoints/best.ckpt"
    told = "data.download=true"
    printed = command(deploy.main, checkpoint, "data.root=b", told, "output=x", "export=weights")
    assert "differs for 0 of 4 validation images" in printed
    assert len(downloads) == 8
    printed = command(train.main, "mode=validate", checkpoint, "data.root=c", told, *QUICK[2:5])
    assert "4 images" in printed
    assert len(downloads) == 12


def test_of_several_processes_one_downloads_and_the_others_wait(tmp_path, monkeypatch):
    downloads = []

    def download(root, **_):
        downloads.append(root)
        time.sleep(0.3)
        write_fashion(root)

    monkeypatch.setattr(datasets, "FashionMNIST", download)
    opened = []

    def process():
        data = FashionMNISTDataModule(root=tmp_path / "new", download=True)
        data.setup("validate")
        opened.append(len(data.load("val")))

    # A lock of files does not tell threads from processes.
    threads = [threading.Thread(target=process) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [4] * 4
    assert len(downloads) == 1


def write_images(folder, *classes):
    for name in classes:
        for split in ("train", "val"):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (16, 16), (number, 9, 9)).save(place / f"{number}.png")
    return f"data.root={folder}"


FOLDER = ["data=image_folder", "data.image_size=16", *QUICK]


def test_a_broken_image_is_one_line_and_leaves_no_run(command, tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    root = write_images(folder, "a", "b")
    (folder / "train/b/1.png").write_bytes(b"no image")
    error = command(
        train.main, *FOLDER, root, "data.num_workers=1", "trainer.limit_train_batches=1.0", code=2
    )
    assert re.fullmatch(r".*train/b/1\.png could not be read as an image: .*\n", error)
    assert list(tmp_path.iterdir()) == []


def test_images_of_other_classes_are_refused(command, tmp_path_factory):
    first, second = tmp_path_factory.mktemp("pets"), tmp_path_factory.mktemp("letters")
    command(train.main, *FOLDER, write_images(first, "cat", "dog"), "deploy=false")
    checkpoint, other = "ckpt_path=run/checkpoints/best.ckpt", write_images(second, "a", "b", "c")
    said = "classes are others: 2 only in training (cat, dog), 3 only here (a, b, c)."
    assert said in command(deploy.main, checkpoint, other, "output=x", code=2)
    assert not Path("x").exists()
    assert said in command(train.main, "mode=validate", checkpoint, other, *QUICK[2:5], code=2)


def test_validation_changes_the_recorded_data(command):
    data = ["data=synthetic", "data.train_size=4", "data.val_size=6", "data.image_size=16"]
    command(train.main, *data, *QUICK, "deploy=false")
    validate = ["mode=validate", "ckpt_path=run/checkpoints/best.ckpt", *QUICK[2:5]]
    assert "6 images" in command(train.main, *validate)
    assert "6 images" in command(train.main, *validate, "data.batch_size=4")
    assert "5 images" in command(train.main, *validate, "data.val_size=5")
    assert "Did you mean data.val_size" in command(train.main, *validate, "data.val_sise=5", code=2)
    error = command(train.main, *validate, "data=mnist5k", code=2)
    assert "in_channels was 3 and is 1; " in error
