"""Give a piece of code random numbers of its own, whatever generators it draws them from."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators from ``words``, and restore them after.

    The transforms of timm and torchvision draw from all three global generators. Hashing keeps
    neighbouring words, such as two epochs of one image, from giving related streams.
    """
    seed = int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "little")
    # The global generators are the point here: they are what timm and torchvision read.
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    # Not torch.manual_seed, which would seed the accelerators too, and they are not restored.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_cpu)
