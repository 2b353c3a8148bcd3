"""What is computed with: values changed in place, without a batch, in other numbers."""

import pytest
import torch
from torch import nn
from unusual import Layers, conv, folded, image

from repblocks.folding.fold import fold


def _split_then_changed(m, x):
    y = m.one(x)
    parts = y.chunk(2, 1)
    y.mul_(2)
    return m.two(parts[0])


def _stack_then_changed(m, x):
    y, z = m.one(x), m.one(x.tanh())
    both = torch.stack([y, z])
    y.mul_(2)
    return both.sum(0), y


def _source_then_changed(m, x):
    x = x + 0
    parts = x.split(2, 1)
    x.relu_()
    return m.two(torch.cat([parts[1], parts[0]], 1)) + m.two(x)


@pytest.mark.parametrize("forward", [_split_then_changed, _stack_then_changed])
def test_parts_of_what_is_changed_later_are_changed(forward):
    folded(Layers(forward, one=conv(4, 8), two=conv(4, 4)), image(2, 4, 5, 6))


def test_a_split_of_an_input_that_is_changed_later_is_changed():
    folded(Layers(_source_then_changed, two=conv(4, 4)), image(2, 4, 5, 6))


@pytest.mark.parametrize(
    "layer", [conv(8, 8), nn.AvgPool2d(2), nn.ZeroPad2d(1)], ids=lambda m: type(m).__name__
)
def test_without_a_batch_the_channels_come_first(layer):
    def forward(m, x):
        return m.layer(m.one(x) * m.rows)

    rows = nn.Parameter(torch.randn(8, 1))
    model = Layers(forward, one=conv(8, 8), layer=layer, rows=rows)
    assert folded(model, image(8, 8, 8)).fold_report.folded == ()


def test_complex_layers_stay():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 1, dtype=torch.cfloat) for _ in range(2))).eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.cfloat)
    for result in (fold(model, x, verify=False), fold(model)):
        assert result.fold_report.folded == ()
        assert torch.equal(result(x), model(x))


def _sum_in_single(m, x):
    return torch.stack([m.one(x), m.two(x)]).sum(0, dtype=torch.float32)


def _promoted(m, x):
    return (m.two(m.one(x)) * m.factor).relu()


def test_what_changes_the_dtype_stays():
    folded(Layers(_sum_in_single, one=conv(4, 4), two=conv(4, 4)), image(2, 4, 5, 5))
    model = Layers(_promoted, one=conv(4, 4), two=conv(4, 4))
    model.float().factor = torch.randn(4, 1, 1, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 5)
    assert fold(model.eval(), x, verify=False)(x).dtype == torch.float64
