"""Read the IDX files of MNIST and its successors, compressed or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from repblocks.errors import DataError

_UINT8 = 8


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of bytes.

    The file is two zero bytes, the type, the number of dimensions, each dimension as a
    big-endian 32-bit integer, and the values.

    Args:
        path: Compressed if it ends in ``.gz``.

    Returns:
        An array of the shape that the file states.

    Raises:
        DataError: if the file is not IDX, truncated, or damaged.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path} could not be read: {error}. Get the file again.") from error
    start = 4 + 4 * dimensions
    if zero or kind != _UINT8 or len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} is not a complete IDX file of bytes: its header states type {kind} and shape"
            f" {shape}, and {len(content) - start} bytes follow. Get the file again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
