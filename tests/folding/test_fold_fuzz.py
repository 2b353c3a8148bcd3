"""Random linear regions: a fold equals its original, or leaves it as it was."""

import dataclasses

import fold_promises
import pytest
import torch
from fold_promises import judge
from hypothesis import HealthCheck, given, settings
from linear_regions import random_region, regions
from torch import nn

TOLERANCE = 1e-10
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(regions())
def test_a_random_region_folds_exactly_or_stays(case):
    region, x = case
    assert judge(region, x, TOLERANCE).broken == []


@pytest.mark.parametrize("seed", [3149, 3163, 8640, 9532, 19287])
def test_regions_that_were_once_wrong(seed):
    """A moved scale beside code, dead code in a replaced root, a free value, taps of selections."""
    region, x = random_region(seed)
    assert judge(region, x, TOLERANCE).broken == []


def test_a_seed_gives_one_region():
    (one, x), (other, y) = random_region(3), random_region(3)
    assert repr(one) == repr(other)
    assert torch.equal(x, y)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def drop_bias(_model, folded):
    folded[0].bias.data[1] = 0.0


def scale_layer(_model, folded):
    folded[0].weight.data *= 1.0 + 1e-8


def change_the_input_model(model, _folded):
    model[1].running_mean += 1e-6


def add_a_layer(_model, folded):
    folded.append(nn.Conv2d(4, 4, 1, groups=4, bias=False).double())
    nn.init.ones_(folded[-1].weight)


def say_that_nothing_was_folded(_model, folded):
    folded.fold_report = dataclasses.replace(folded.fold_report, folded=())


@pytest.mark.parametrize(
    ("sabotage", "what"),
    [
        (drop_bias, "wrong at the example"),
        (scale_layer, "wrong at another size"),
        (change_the_input_model, "the input model or the example was changed"),
        (add_a_layer, "convs grew: 1 to 2"),
        (say_that_nothing_was_folded, "what was folded is not what was planned"),
    ],
)
def test_a_broken_promise_is_seen(monkeypatch, sabotage, what):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).double().eval()
    model[1].running_mean.normal_()
    right = fold_promises.fold

    def wrong(model, *args, **kwargs):
        folded = right(model, *args, **kwargs)
        with torch.no_grad():
            sabotage(model, folded)
        return folded

    monkeypatch.setattr(fold_promises, "fold", wrong)
    broken = judge(model, torch.randn(2, 3, 5, 5, dtype=torch.float64), TOLERANCE).broken
    assert any(what in promise for promise in broken), broken
