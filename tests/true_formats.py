"""Tiny data sets in the true formats of the large ones."""

import gzip
import hashlib
import pickle
import struct

import numpy as np


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion(folder, num_train=6, num_val=4):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, size in (("train", num_train), ("t10k", num_val)):
        pixels = np.arange(size * 784).reshape(size, 28, 28) % 256
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        labels = gzip.compress(idx(np.arange(size) % 10))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(labels)


def write_cifar(root, source, key, monkeypatch):
    """Write files of the original format, and have torchvision expect their checksums."""
    folder = root / source.base_folder
    folder.mkdir(parents=True)

    def checksummed(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for files in ("train_list", "test_list"):
        written = [
            checksummed(name, {"data": np.full((2, 3072), 51 * i, np.uint8), key: [i, i + 1]})
            for i, (name, _) in enumerate(getattr(source, files))
        ]
        monkeypatch.setattr(source, files, written)
    names = [f"class {i}" for i in range(100)]
    name, md5 = checksummed(source.meta["filename"], {source.meta["key"]: names})
    monkeypatch.setattr(source, "meta", source.meta | {"filename": name, "md5": md5})
    return folder
