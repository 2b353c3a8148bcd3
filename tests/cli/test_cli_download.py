"""data.download=true gets what is missing, in each command that reads images."""

import gzip
import logging
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
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
def command(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["repblocks", *arguments])
        main()

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


def test_each_command_downloads_what_is_missing(command, tmp_path_factory, monkeypatch, capsys):
    downloads = offer_fashion(tmp_path_factory.mktemp("origin"), monkeypatch)
    command(train.main, "data=fashion_mnist", "data.root=a", "data.download=true", *QUICK)
    assert len(downloads) == 4, "once, and not again for the deployment"
    shutil.rmtree("a")
    capsys.readouterr()
    checkpoint = "ckpt_path=run/checkpoints/best.ckpt"
    command(deploy.main, checkpoint, "output=x", "export=weights")
    assert "differs for 0 of 4 validation images" in capsys.readouterr().out
    assert len(downloads) == 8
    shutil.rmtree("a")
    command(train.main, "mode=validate", checkpoint, *QUICK[2:5])
    assert "4 images" in capsys.readouterr().out
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
