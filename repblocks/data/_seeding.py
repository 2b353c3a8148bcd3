"""Random numbers that depend on given words alone, from whatever generator they are drawn.

The transforms of timm and torchvision draw from the global generators of Python, NumPy and torch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch's CPU at the end."""
    python, numpy, torch_cpu = random.getstate(), _numpy().get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        _numpy().set_state(numpy)
        torch.set_rng_state(torch_cpu)


def seed_from(*words: int) -> int:
    """Mix ``words`` into a seed of 32 bits, all that NumPy and torch's CPU generator look at.

    Any other words give unrelated random numbers; a sum would give epoch 1 of seed 0 those of
    epoch 0 of seed 1.
    """
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=4).digest(), "little")


def seed_everything(*words: int) -> None:
    """Seed these generators from ``words``."""
    seed = seed_from(*words)
    random.seed(seed)
    _numpy().seed(seed)
    # Not torch.manual_seed, which seeds the accelerators too, and these are not restored.
    torch.default_generator.manual_seed(seed)


def _numpy() -> np.random.RandomState:
    # The instance behind np.random.rand and its like, which is what timm's RandAugment calls.
    return np.random.mtrand._rand
