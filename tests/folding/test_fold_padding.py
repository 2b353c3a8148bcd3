"""Padding that differs between the two sides of an axis: torch writes some of it as a layer."""

import pytest
import torch
from test_fold_moves import Code, count, folded_exactly
from torch import nn
from torch.nn import functional
from truth import relative_error

import repblocks
from repblocks.branches import is_channels_last

# Torch warns that it copies the input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.mark.parametrize("ndim", CONVS)
@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"padding_mode": "reflect"}], ids=repr)
def test_a_convolution_of_an_even_size_takes_a_norm_in_and_stays_same(ndim, options):
    conv = CONVS[ndim](4, 8, 4, padding="same", **options)
    result = folded_exactly(nn.Sequential(conv, NORMS[ndim](8), nn.ReLU()), 2, 4, *(7,) * ndim)
    assert [type(layer) for layer in result] == [CONVS[ndim], nn.Identity, nn.ReLU]
    assert (result[0].kernel_size, result[0].padding) == ((4,) * ndim, "same")


def test_a_convolution_of_an_even_size_takes_a_branch_in():
    model = Code(
        lambda m, x: m.norm(m.a(x)) + m.b(x),
        a=nn.Conv2d(4, 4, (4, 3), padding="same"),
        b=nn.Conv2d(4, 4, 1),
        norm=nn.BatchNorm2d(4),
    )
    result = folded_exactly(model, 2, 4, 7, 6)
    assert count(result, nn.Conv2d) == 1
    assert result.fold_report.macs_after == 6 * 7 * 4 * 4 * 12


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_values_of_the_input_becomes_a_layer(mode):
    options = {"padding": "same", "padding_mode": mode}
    model = Code(
        lambda m, x: m.b(m.norm(m.a(x))),
        a=nn.Conv2d(4, 4, (4, 2), **options),
        b=nn.Conv2d(4, 4, 1),
        norm=nn.BatchNorm2d(4),
    )
    result = folded_exactly(model, 2, 4, 7, 6)
    assert count(result, nn.Conv2d) == 1


@pytest.mark.parametrize("ndim", CONVS)
@pytest.mark.parametrize("sides", [(0, 1), (2, 0), (1, 3)])
@pytest.mark.parametrize("groups", [1, 4])
def test_branches_padded_more_on_one_side_become_one_padding_and_one_convolution(
    ndim, sides, groups
):
    options = {"stride": 2, "groups": groups}
    model = Code(
        lambda m, x: m.norm_a(m.a(functional.pad(x, sides * ndim))) + m.norm_b(m.b(x)),
        a=CONVS[ndim](4, 4, sum(sides) + 1, **options),
        b=CONVS[ndim](4, 4, 1, **options),
        norm_a=NORMS[ndim](4),
        norm_b=NORMS[ndim](4),
    )
    result = folded_exactly(model, 2, 4, *(9, 8, 7)[:ndim])
    (conv,) = (layer for layer in result.modules() if isinstance(layer, CONVS[ndim]))
    pads = [layer for layer in result.modules() if "ZeroPad" in type(layer).__name__]
    assert [tuple(pad.padding) for pad in pads] == [sides * ndim]
    assert conv.kernel_size == (sum(sides) + 1,) * ndim
    assert not any(layer.training for layer in result.modules())
    again = repblocks.fold(result, torch.randn(2, 4, *(9, 8, 7)[:ndim], dtype=conv.weight.dtype))
    assert not again.fold_report.folded
    assert again.state_dict().keys() == result.state_dict().keys()


def test_padding_before_a_convolution_stays_where_it_is():
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(4, 4, 3, 2), nn.BatchNorm2d(4))
    result = folded_exactly(model, 2, 4, 8, 8)
    assert [type(layer) for layer in result] == [nn.ZeroPad2d, nn.Conv2d, nn.Identity]


def test_a_pointwise_convolution_joins_the_one_behind_the_padding():
    model = nn.Sequential(
        nn.Conv2d(4, 16, 1, bias=False), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(16, 4, 3, 2)
    )
    result = folded_exactly(model, 2, 4, 8, 8)
    first, pad, conv = result
    assert (type(first), type(pad)) == (nn.Identity, nn.Identity)
    assert [type(layer) for layer in conv] == [nn.ZeroPad2d, nn.Conv2d]


def test_padding_that_crops_is_written_as_taps_of_zero():
    model = Code(
        lambda m, x: m.a(functional.pad(x, (-1, 1, 0, 0))) + m.b(x),
        a=nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
        b=nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
    )
    folded_exactly(model, 2, 4, 6, 8)


def same_at_stride_two(sides=(0, 1, 0, 1)):
    """What TensorFlow's ``SAME`` padding of an even size is."""
    return Code(
        lambda m, x: m.norm(m.a(functional.pad(x, sides)) + m.b(x)),
        a=nn.Conv2d(4, 4, 3, 2),
        b=nn.Conv2d(4, 4, 1, 2),
        norm=nn.BatchNorm2d(4),
    )


@pytest.mark.parametrize("sides", [(0, 1, 0, 1), (1, 0, 1, 0), (1, 0, 0, 1)])
def test_branches_that_agree_at_one_size_become_one_convolution_where_it_is_fixed(sides):
    model = same_at_stride_two(sides)
    free = folded_exactly(model, 2, 4, 8, 6)
    fixed = folded_exactly(model, 2, 4, 8, 6, fixed_size=True)
    assert (count(free, nn.Conv2d), count(fixed, nn.Conv2d)) == (2, 1)
    (pad,) = (layer for layer in fixed.modules() if isinstance(layer, nn.ZeroPad2d))
    assert tuple(pad.padding) == sides
    assert fixed.fold_report.macs_after == 4 * 3 * 4 * 4 * 9


def test_what_was_folded_for_a_fixed_size_is_right_wherever_the_original_runs():
    model = same_at_stride_two()
    fixed = folded_exactly(model, 2, 4, 8, 6, fixed_size=True)
    for sizes in ((8, 10), (32, 2), (9, 6)):
        x = torch.randn(1, 4, *sizes, dtype=torch.float64)
        try:
            truth = model(x)
        except RuntimeError:
            assert sizes == (9, 6)
        else:
            assert relative_error(fixed(x), truth) < 1e-12


def test_what_a_fixed_size_folds_is_told_beforehand():
    model, x = same_at_stride_two().eval(), torch.randn(2, 4, 8, 6)
    found = repblocks.explain(model, x, fixed_size=True)
    assert found.folded == repblocks.fold(model, x, fixed_size=True).fold_report.folded
    assert found.folded != repblocks.explain(model, x).folded


class Crop(nn.Module):
    def forward(self, x):
        return x[..., :-2]


class Grow(nn.Module):
    def forward(self, x):
        return functional.pad(x, (0, 1))


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv1d(4, 4, 3, padding=2), Crop(), nn.ReLU()),
        (nn.Sequential(), nn.ConstantPad1d((0, 1), 0.0), nn.Conv1d(4, 4, 3)),
        (Grow(), Grow(), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)),
    ],
    ids=["cropped", "behind nothing", "padded twice"],
)
def test_no_padding_is_added_where_that_spares_no_layer(layers):
    model = nn.Sequential(*layers)
    result = folded_exactly(model, 2, 4, 9)
    assert not any("ZeroPad" in type(layer).__name__ for layer in result.modules())
    assert {*result.state_dict()} <= {*model.state_dict()} | {"2.bias"}


def test_a_second_fold_leaves_padding_and_convolution_as_they_are():
    layers = nn.Conv1d(4, 8, 1, bias=False), Grow(), nn.Conv1d(8, 4, 3, 2), nn.BatchNorm1d(4)
    once = folded_exactly(nn.Sequential(*layers), 2, 4, 8)
    again = repblocks.fold(once, torch.randn(2, 4, 8, dtype=torch.float64))
    assert [*again.state_dict()] == [*once.state_dict()] == ["2.1.weight", "2.1.bias"]


@pytest.mark.parametrize("is_of_one_size", [True, False])
def test_what_is_called_at_several_sizes_has_no_fixed_one(is_of_one_size):
    def code(m, x):
        return m.part(x), m.part(2 * x if is_of_one_size else x[:, :, :3, :3])

    model = Code(code, part=same_at_stride_two()).double().eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    fixed = repblocks.fold(model, x, fixed_size=True)
    assert count(fixed, nn.Conv2d) == (1 if is_of_one_size else 2)
    for found, truth in zip(fixed(x), model(x), strict=True):
        assert relative_error(found, truth) < 1e-12


def test_memory_with_channels_last_is_kept_where_the_old_weights_are_both():
    model = Code(
        lambda m, x: m.a(x) + m.b(x),
        a=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        b=nn.Conv2d(4, 4, 1, groups=4),
    ).to(memory_format=torch.channels_last)
    (weight,) = (w for w in folded_exactly(model, 2, 4, 8, 8).parameters() if w.ndim == 4)
    assert is_channels_last(weight)
