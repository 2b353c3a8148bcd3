"""Rounding, bias correction, and what each layer loses, on layers whose numbers are known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from quantization_nets import Plain, images, unlike_channels
from torch import Tensor, nn

from repblocks.deployment.quantization.bias_correction import correct_biases_
from repblocks.deployment.quantization.friendliness import measure_friendliness
from repblocks.deployment.quantization.simulation import (
    measure_ranges,
    quantizable_layers,
    quantize_activation,
    quantize_weight,
    quantized,
)


@pytest.mark.parametrize(("half_range", "largest"), [(True, 63), (False, 127)])
def test_weights_are_rounded_by_channel(half_range: bool, largest: int) -> None:
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([1e-3, 1.0, 50.0, 0.0]).view(4, 1, 1, 1)
    found = quantize_weight(weight, half_range=half_range)
    step = weight.abs().amax((1, 2, 3), keepdim=True) / largest
    assert ((found - weight).abs() <= step / 2 * 1.001).all()
    levels = (found / step)[:3]
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


def test_activations_keep_zero() -> None:
    x = torch.linspace(-1, 3, 1000)
    found = quantize_activation(x, (-1.0, 3.0))
    assert len(found.unique()) == 256
    assert (found - x).abs().max() <= 4 / 255 * 0.51
    assert quantize_activation(torch.zeros(1), (0.5, 2.0)) == 0


def test_the_layers_are_as_before_afterwards() -> None:
    model, x = unlike_channels(Plain()), images()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        with pytest.raises(KeyError, match="stop"):
            _fail_while_quantized(model, x, expected)
        assert torch.equal(model(x), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def _fail_while_quantized(model: nn.Module, x: Tensor, expected: Tensor) -> None:
    ranges = measure_ranges(model, [x])
    with quantized(quantizable_layers(model), ranges, half_range=True):
        assert not torch.equal(model(x), expected)
        raise KeyError("stop")


def simulated(model: nn.Module, reference: nn.Module, x: Tensor) -> Tensor:
    """Run a model quantized, with the ranges of the network that it was made from."""
    ranges = measure_ranges(reference, [x])
    with quantized(quantizable_layers(model), ranges, half_range=True), torch.no_grad():
        return model(x)


def test_bias_correction_takes_the_mean_error_away() -> None:
    model, x = unlike_channels(Plain()), images(64)
    corrected = copy.deepcopy(model)
    correct_biases_(corrected, [x[:40], x[40:]], half_range=True)
    assert corrected.body[1].bias is not None, "a layer without bias gets one"
    with torch.no_grad():
        expected = model(x)
    errors = [
        float((simulated(m, model, x) - expected).mean(0).abs().max()) for m in (model, corrected)
    ]
    assert errors[1] < 1e-3 * errors[0]


def test_a_layer_that_runs_twice_is_corrected_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x).relu())

    model = unlike_channels(Twice())
    before = model.conv.bias.clone()
    correct_biases_(model, [images()], half_range=True)
    assert not torch.equal(model.conv.bias, before)
    assert torch.allclose(model.conv.bias, before, rtol=0.1, atol=0.3)


def crafted() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 2, 1))
    torch.manual_seed(0)
    for conv in (model[0], model[2]):
        conv.weight.data = conv.weight.sign() * 0.5
    model[0].weight.data[3] *= 8  # an outlier channel
    model[0].weight.data[1, 2, 1, 1] = 10.0  # an outlier in a channel
    model[0].weight.data[1, 0] = 0.0
    return model.eval()


def test_outliers_are_found() -> None:
    first, second = measure_friendliness(crafted(), [images()], half_range=True)
    assert (first.path, second.path) == ("0", "2")
    assert (first.lowest, first.highest) == (-4.0, 10.0)
    assert first.outlier_ratio == 10.0 / 0.5
    assert first.channel_ratio == 10.0 / 0.5
    assert (second.outlier_ratio, second.channel_ratio) == (1.0, 1.0)
    assert second.lowest == -second.highest == -0.5


def test_the_errors_are_those_of_one_layer_at_a_time() -> None:
    model, x = unlike_channels(Plain()), images(16)
    found = measure_friendliness(model, [x[:7], x[7:]], half_range=True)
    assert [layer.path for layer in found] == list(quantizable_layers(model))
    assert math.isclose(sum(layer.error_share for layer in found), 1.0)
    ranges = measure_ranges(model, [x])
    with torch.no_grad():
        expected = model(x)
        powers = []
        for path, layer in quantizable_layers(model).items():
            with quantized({path: layer}, ranges, half_range=True):
                powers.append(float((model(x) - expected).double().square().mean()))
    for layer, power in zip(found, powers, strict=True):
        signal = float(expected.double().square().mean())
        assert math.isclose(layer.sqnr_db, 10 * math.log10(signal / power), rel_tol=1e-4)
        assert math.isclose(layer.error_share, power / sum(powers), rel_tol=1e-3)


def test_a_network_that_loses_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False)).eval()
    nn.init.zeros_(model[0].weight)
    (found,) = measure_friendliness(model, [images()], half_range=True)
    assert (found.sqnr_db, found.error_share, found.outlier_ratio) == (None, 0.0, 1.0)
    assert found.channel_ratio == 1.0
