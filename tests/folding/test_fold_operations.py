"""Operations that are known under several names, and those with borders of their own."""

import pytest
import torch
from call_tape import executed
from test_fold_moves import Code, count, folded_exactly
from torch import nn
from torch.nn import functional
from truth import calibrate

from repblocks.blocks.repnext_chunk import RepNeXtChunkBlock
from repblocks.branches.nodes import SplitConcat


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def two():
    return {"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1)}


SUMS = {
    "stack and mean": lambda m, x: torch.stack([m.a(x), m.b(x)], -1).mean(-1),
    "stack and mean by function": lambda m, x: torch.mean(torch.stack((m.a(x), m.b(x))), dim=0),
    "subtract": lambda m, x: torch.subtract(m.a(x), m.b(x), alpha=2),
    "subtract from": lambda m, x: torch.rsub(m.a(x), m.b(x), alpha=2),
    "negative of a product": lambda m, x: torch.negative(torch.multiply(m.a(x), 2)) + m.b(x),
    "divide": lambda m, x: torch.divide(m.a(x), 2) + m.b(x),
}


@pytest.mark.parametrize("name", SUMS)
def test_branches_are_summed(name):
    result = folded_exactly(Code(lambda m, x: SUMS[name](m, x).relu(), **two()), 2, 4, 6, 7)
    assert count(result, nn.Conv2d) == 1
    assert len(result.fold_report.folded) == 1


@pytest.mark.parametrize("name", SUMS)
def test_a_norm_after_a_sum_of_different_sources_stays_exact(name):
    def code(m, x):
        return m.norm(SUMS[name](m, x)).relu()

    model = Code(code, **two(), norm=nn.BatchNorm2d(4))
    model.b = nn.Sequential(nn.ReLU(), model.b)
    folded_exactly(model, 2, 4, 6, 7)


MODES = {
    "reflect": nn.ReflectionPad2d((1, 1, 2, 2)),
    "replicate": nn.ReplicationPad2d((1, 1, 2, 2)),
    "circular": nn.CircularPad2d((1, 1, 2, 2)),
}


@pytest.mark.parametrize("is_module", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_norm_passes_padding_with_values_of_the_input(mode, is_module):
    def code(m, x):
        x = m.norm(x.relu())
        padded = m.pad(x) if is_module else functional.pad(x, (1, 1, 2, 2), mode=mode)
        return m.conv(padded).relu()

    parts = {"norm": nn.BatchNorm2d(4), "pad": MODES[mode], "conv": nn.Conv2d(4, 5, 3)}
    result = folded_exactly(Code(code, **parts), 2, 4, 6, 7)
    assert count(result, nn.BatchNorm2d) == 0
    assert [m.padding_mode for m in result.modules() if isinstance(m, nn.Conv2d)] == [mode]


def test_padding_that_differs_between_the_sides_stays():
    model = nn.Sequential(nn.ReplicationPad2d((1, 0, 0, 0)), nn.Conv2d(4, 5, 3))
    assert folded_exactly(model, 2, 4, 6, 7).fold_report.folded == ()


def test_a_product_with_a_matrix_is_a_linear_layer():
    model = Code(lambda m, x: m.norm(x @ m.matrix).relu(), norm=nn.BatchNorm1d(5))
    model.matrix = nn.Parameter(torch.randn(4, 5))
    result = folded_exactly(model, 6, 4)
    assert count(result, nn.Linear) == 1
    assert count(result, nn.BatchNorm1d) == 0


@pytest.mark.parametrize("bias", [False, True])
def test_padded_pooling_takes_in_a_convolution_that_gives_zero_for_zero(bias):
    def code(m, x):
        pooled = functional.avg_pool2d(m.conv(x), 3, stride=2, padding=1)
        return (m.norm(pooled) + m.other(x)).relu()

    other = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    parts = {"conv": nn.Conv2d(4, 4, 1, bias=bias), "norm": nn.BatchNorm2d(4), "other": other}
    result = folded_exactly(Code(code, **parts), 2, 4, 6, 7)
    assert count(result, nn.Conv2d) == (2 if bias else 1)


def test_zero_padding_stands_between_layers_without_a_bias_only():
    def code(m, x):
        return m.second(functional.pad(m.first(x), (1, 1, 1, 1))).relu()

    def model(bias):
        return Code(code, first=nn.Conv2d(8, 8, 1, bias=bias), second=nn.Conv2d(8, 2, 3))

    assert len(folded_exactly(model(False), 2, 8, 6, 7).fold_report.folded) == 1
    assert count(folded_exactly(model(True), 2, 8, 6, 7), nn.Conv2d) == 2


def test_layers_inside_a_node_of_branches_are_counted():
    block = RepNeXtChunkBlock(16).double()
    x = torch.randn(2, 16, 7, 6, dtype=torch.float64)
    calibrate(block, x)
    result = folded_exactly(nn.Sequential(block, nn.Conv2d(16, 3, 1)), 2, 16, 7, 6)
    assert any(isinstance(m, SplitConcat) for m in result.modules())
    assert result.fold_report.macs_after == executed(result, x)["macs"] // len(x)
