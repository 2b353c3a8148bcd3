"""Which images the ranges are measured on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repblocks.data import Augmentation, SyntheticDataModule
from repblocks.deployment.quantization import QuantizationConfig
from repblocks.deployment.quantization.calibration import calibration_batches
from repblocks.errors import ConfigurationError, DataError


def data(**changes: Any) -> SyntheticDataModule:
    return SyntheticDataModule(**{"image_size": 8, "train_size": 70, "val_size": 3} | changes)


def test_they_are_training_images_as_evaluation_sees_them_drawn_once_each() -> None:
    batches = calibration_batches(data(), QuantizationConfig(images=70))
    assert [tuple(batch.shape) for batch in batches] == [(n, 3, 8, 8) for n in (32, 32, 6)]
    drawn = torch.cat(batches)
    assert len(drawn.flatten(1).unique(dim=0)) == 70
    source = data(val_size=70)
    source.load = lambda _split, load=source.load: load("train")
    expected = torch.cat([images for images, _ in source.val_dataloader()])
    assert torch.equal(drawn.flatten(1).unique(dim=0), expected.flatten(1).unique(dim=0))


def test_the_seed_alone_says_which() -> None:
    def draw(which: int, **changes: Any) -> torch.Tensor:
        torch.rand(1)  # the global generator does not matter
        return torch.cat(calibration_batches(data(**changes), QuantizationConfig(20, which)))

    first = draw(0)
    assert len(first) == 20
    assert torch.equal(first, draw(0, seed=5, batch_size=7, augmentation=Augmentation()))
    assert not torch.equal(first, draw(1))


def test_no_images_are_refused() -> None:
    config = QuantizationConfig()
    with pytest.raises(ConfigurationError, match="no data was given"):
        calibration_batches(None, config)
    empty = data()
    empty.load = lambda _split: []
    with pytest.raises(ConfigurationError, match="the training set holds 0"):
        calibration_batches(empty, config)

    def missing(_split: str) -> Any:
        raise DataError("No train images in data/x.")

    empty.load = missing
    with pytest.raises(ConfigurationError, match=r"needs training images .*: No train images"):
        calibration_batches(empty, config)


def test_options_are_checked_together() -> None:
    message = (
        r"quantization: images must be at least 1, got 0; equalize must be one of none, weights, "
        r"activations, got 'all'; largest_drop must be from 0 to 100, or null, got -1\."
    )
    with pytest.raises(ConfigurationError, match=message):
        QuantizationConfig(images=0, equalize="all", largest_drop=-1)
    assert QuantizationConfig(largest_drop=None).largest_drop is None
