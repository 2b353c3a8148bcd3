"""Equalisation finds the pairs, balances them, and changes no output."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from quantization_nets import Plain, Unequal, images, unlike_channels
from torch import nn

from repblocks.deployment.quantization.equalization import equalize_
from repblocks.deployment.quantization.pairs import find_pairs
from repblocks.deployment.quantization.simulation import measure_ranges


def names(model: nn.Module, x: torch.Tensor) -> list[tuple[str, str]]:
    return [(pair.first, pair.second) for pair in find_pairs(model, x)]


def test_pairs_are_found_across_homogeneous_steps_alone() -> None:
    chain = ["stem", "body.1", "body.3", "fc1", "fc2"]
    assert names(Plain().eval(), images(2)) == list(itertools.pairwise(chain))
    assert names(Unequal().eval(), torch.randn(2, 4, 3, 3)) == []


@pytest.mark.parametrize(
    ("step", "is_homogeneous"),
    [
        (nn.ReLU(), True),
        (nn.PReLU(), True),
        (nn.Dropout(), True),
        (nn.AvgPool2d(2), True),
        (nn.Identity(), True),
        (nn.ReLU6(), False),
        (nn.Sigmoid(), False),
        (nn.Hardswish(), False),
        (nn.Softmax(1), False),
        (nn.ChannelShuffle(2), False),
    ],
)
def test_a_step_between_two_layers(step: nn.Module, is_homogeneous: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), step, nn.Conv2d(4, 2, 1)).eval()
    assert names(model, images(2)) == ([("0", "2")] if is_homogeneous else [])


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_not_one_bit_of_the_output_changes(by: str) -> None:
    for dtype in (torch.float64, torch.float32):
        model = unlike_channels(Plain(), dtype)
        twin, x = copy.deepcopy(model), images(8, dtype)
        equalize_(twin, [x], by)
        changed = [
            name
            for (name, old), new in zip(model.named_parameters(), twin.parameters(), strict=True)
            if not torch.equal(old, new)
        ]
        assert {"stem.weight", "stem.bias", "body.1.weight", "fc2.weight"} <= set(changed)
        with torch.no_grad():
            assert torch.equal(twin(x), model(x))


def test_weights_are_balanced() -> None:
    model = unlike_channels(Plain())
    equalize_(model, [images()], "weights")
    written = model.stem.weight.abs().flatten(1).amax(1)
    read = model.body[1].weight.abs().flatten(1).amax(1)
    assert ((written / read).log2().abs() <= 1.0 + 1e-6).all()


def test_activations_before_a_depthwise_convolution_are_alike() -> None:
    def spread() -> float:
        with torch.no_grad():
            largest = model.body[0](model.stem(x)).abs().amax((0, 2, 3))
        return float(largest.max() / largest.min())

    model, x = unlike_channels(Plain()), images(64)
    assert spread() > 8
    before = measure_ranges(model, [x])
    equalize_(model, [x], "activations")
    assert spread() <= 2
    assert measure_ranges(model, [x])["stem"] == before["stem"]


def test_dead_channels_stay() -> None:
    model = unlike_channels(Plain())
    model.stem.weight.data[2] = 0
    model.stem.bias.data[2] = 0
    model.fc2.weight.data[:, 3] = 0
    twin, x = copy.deepcopy(model), images()
    for by in ("weights", "activations"):
        equalize_(twin, [x], by)
        assert all(p.isfinite().all() for p in twin.parameters())
        with torch.no_grad():
            assert torch.equal(twin(x), model(x))
