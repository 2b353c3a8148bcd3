"""Scales and shifts that are moved to a layer, past what stands between."""

import copy

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks.folding.fold import fold

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Code(nn.Module):
    """Some modules and the code that calls them."""

    def __init__(self, code, **modules):
        super().__init__()
        self.code = code
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.code(self, x)


def folded_exactly(model, *shape):
    x = torch.randn(*shape, dtype=torch.float64)
    calibrate(model.double(), x, x)
    before = copy.deepcopy(model)
    result = fold(model, x)
    other = torch.randn(*shape, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(result(other), before(other)) < EXACT
    return result


def count(model, *classes):
    return sum(isinstance(module, classes) for module in model.modules())


@pytest.mark.parametrize("between", [[nn.Flatten()], [nn.Dropout(), nn.Flatten(), nn.Dropout()]])
def test_a_norm_passes_a_flattening_to_the_head(between):
    layers = [nn.ReLU(), nn.BatchNorm2d(4), *between, nn.Linear(4 * 6, 5), nn.BatchNorm1d(5)]
    result = folded_exactly(nn.Sequential(*layers), 3, 4, 2, 3)
    assert count(result, nn.BatchNorm1d, nn.BatchNorm2d) == 0
    assert result.fold_report.left == ()


def test_a_norm_behind_a_view_is_folded_into_the_linear_layer_before_it():
    model = Code(
        lambda m, x: m.norm(m.linear(x.movedim(1, -1)).permute(0, 3, 1, 2)).relu(),
        linear=nn.Linear(4, 5),
        norm=nn.BatchNorm2d(5),
    )
    result = folded_exactly(model, 3, 4, 5, 6)
    assert count(result, nn.BatchNorm2d) == 0


def test_norms_of_two_slices_go_back_to_the_layer_though_views_follow():
    def code(m, x):
        first, second = m.conv(x).split([3, 5], dim=1)
        return m.a(first).flatten(2).softmax(-1) @ m.b(second).flatten(2).transpose(1, 2)

    model = Code(code, conv=nn.Conv2d(4, 8, 1), a=nn.BatchNorm2d(3), b=nn.BatchNorm2d(5))
    result = folded_exactly(model, 3, 4, 2, 3)
    assert count(result, nn.BatchNorm2d) == 0
    assert result.fold_report.left == ()


def test_a_norm_goes_on_every_path_to_the_layers_that_take_it_in():
    def code(m, x):
        tokens = m.norm(x).flatten(2).transpose(1, 2)
        fewer = m.pool(tokens.transpose(1, 2))
        fewer = m.second(fewer).transpose(1, 2)
        return m.q(tokens).softmax(-1).sum(1) + (m.k(fewer) * m.v(fewer).relu()).sum(1)

    linear = {name: nn.Linear(4, 5) for name in "qkv"}
    norms = {"norm": nn.BatchNorm2d(4), "second": nn.BatchNorm1d(4)}
    result = folded_exactly(Code(code, **norms, pool=nn.AvgPool1d(3), **linear), 3, 4, 2, 3)
    assert count(result, nn.BatchNorm1d, nn.BatchNorm2d) == 0
    assert count(result, nn.Linear) == 3


def test_a_norm_stays_where_one_path_comes_to_no_layer():
    def code(m, x):
        tokens = m.norm(x)
        return m.layer(m.pool(tokens)).sum() + tokens.relu()

    modules = {"norm": nn.BatchNorm2d(4), "pool": nn.AvgPool2d(2), "layer": nn.Conv2d(4, 5, 1)}
    result = folded_exactly(Code(code, **modules), 3, 4, 4, 6)
    assert count(result, nn.BatchNorm2d) == 1
    (left,) = result.fold_report.left
    assert left.reason == "another reader needs the unfolded value"
