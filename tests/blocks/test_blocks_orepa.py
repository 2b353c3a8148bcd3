"""OREPA: its kernels against the formulas of the paper, its start, and what it refuses."""

import math

import pytest
import torch
from torch.nn import functional
from weight_space_forms import check_forms, check_gradients, image, kernel_node, trained

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError

STARTS = {
    "origin": 0.25,
    "average": 0.25,
    "prior": 0.0,
    "pointwise_kxk": 0.5,
    "pointwise": 1.0,
    "depthwise": 0.5,
}


def prior(channels, size):
    """Half of the channels have their frequency along the rows, half along the columns."""
    filters, half = torch.zeros(channels, size, size, dtype=torch.float64), channels // 2
    for i in range(channels):
        for h in range(size):
            for w in range(size):
                place, number = (h, i) if i < half else (w, i - half)
                filters[i, h, w] = math.cos(math.pi * (place + 0.5) * (number + 1) / size)
    return filters


def dense(weight, groups):
    """Write a grouped kernel as one of a single group."""
    out_channels, width = weight.shape[:2]
    full = weight.new_zeros(out_channels, width * groups, *weight.shape[2:])
    for channel in range(out_channels):
        start = channel // (out_channels // groups) * width
        full[channel, start : start + width] = weight[channel]
    return full


def six(tree, in_channels, groups, size):
    """Return the dense kernel ``(O, C, k, k)`` of six branches, after the formulas of section 3."""
    weights = {
        name: [
            dense(p, in_channels if name == "depthwise" and number == 0 else groups)
            for number, p in enumerate(p for p in branch.parameters() if p.ndim == 4)
        ]
        for name, branch in tree.items()
    }
    out_channels = weights["origin"][0].shape[0]
    first, last = weights["pointwise_kxk"]
    identity = torch.zeros_like(first)
    inside, width = first.shape[0] // groups, in_channels // groups
    for channel in range(first.shape[0]):
        identity[channel, channel // inside * width + channel % inside % width] = 1
    centre = torch.zeros(size, size, dtype=torch.float64)
    centre[size // 2, size // 2] = 1
    kernels = {
        "origin": weights["origin"][0],
        "average": weights["average"][0].expand(-1, -1, size, size) / size**2,
        "prior": weights["prior"][0] * prior(out_channels, size).unsqueeze(1),
        "pointwise_kxk": torch.einsum("ti,othw->oihw", (first + identity).flatten(1), last),
        "pointwise": weights["pointwise"][0] * centre,
        "depthwise": torch.einsum(
            "tihw,ot->oihw", weights["depthwise"][0], weights["depthwise"][1].flatten(1)
        ),
    }
    scales = {name: branch.scale.weight.view(-1, 1, 1, 1) for name, branch in tree.items()}
    return sum(scales[name] * kernel for name, kernel in kernels.items())


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(
    ("channels", "groups", "internal"),
    [((4, 6), 1, None), ((4, 4), 2, 8), ((6, 6), 6, None), ((4, 8), 4, 12), ((4, 6), 1, 3)],
)
def test_the_kernel_is_that_of_the_paper(size, channels, groups, internal):
    block = trained("orepa", *channels, size, 2, groups=groups, internal_channels=internal)
    x = image(2, channels[0], 9, 8)
    kernel = six(kernel_node(block).sum, channels[0], groups, size)
    check_forms(block, x, functional.conv2d(x, kernel, None, 2, size // 2))


@pytest.mark.parametrize("channels", [(4, 8), (8, 4), (6, 6)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_pointwise_kernel_is_one_and_two_in_a_row(channels, groups):
    block = trained("orepa", *channels, 1, 2, groups=groups)
    tree = kernel_node(block).sum
    assert set(tree) == {"origin", "pointwise_pointwise"}
    x = image(2, channels[0], 7, 8)
    first, second = (p for p in tree["pointwise_pointwise"].parameters() if p.ndim == 4)
    inner = functional.conv2d(x, first, groups=groups)
    y = functional.conv2d(inner, second, groups=groups)
    y = y * tree["pointwise_pointwise"].scale.weight.view(-1, 1, 1)
    origin = next(tree["origin"].parameters())
    y = y + functional.conv2d(x, origin, groups=groups) * tree["origin"].scale.weight.view(-1, 1, 1)
    check_forms(block, x, y[:, :, ::2, ::2])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("form", ["orepa", "plain"])
def test_a_large_kernel_is_a_series_of_small_ones(form, groups):
    block = trained("orepa", 4, 6, 7, 2, large_kernel=form, groups=groups)
    series = kernel_node(block)
    x = image(2, 4, 11, 12)
    y = functional.pad(x, [3, 3, 3, 3])
    for number, channels in enumerate((4, 6, 6)):
        layer = getattr(series, f"kernel{number}")
        if form == "orepa":
            kernel = six(layer, channels, groups, 3)
        else:
            kernel = dense(layer.conv.weight, groups)
        y = functional.conv2d(y, kernel, None, 2 if number == 2 else 1)
    check_forms(block, x, y)
    assert block.conv.kernel_size == (7, 7)


def test_a_large_kernel_can_be_six_of_its_size():
    block = trained("orepa", 3, 4, 7, large_kernel="branches")
    x = image(1, 3, 9, 9)
    kernel = six(kernel_node(block).sum, 3, 1, 7)
    check_forms(block, x, functional.conv2d(x, kernel, None, 1, 3))


@pytest.mark.parametrize("ndim", [1, 3])
def test_filters_are_shared_out_among_the_axes(ndim):
    tree = kernel_node(create_block("orepa", 6, 6, 3, ndim=ndim).double()).sum
    weight = tree["prior"].step1.weight(torch.ones((), dtype=torch.float64)).squeeze(1)
    share = 6 // ndim
    for channel in range(6):
        line = torch.cos(math.pi * (torch.arange(3) + 0.5) * (channel % share + 1) / 3)
        places = [3 if axis == channel // share else 1 for axis in range(ndim)]
        expected = line.double().view(places).expand([3] * ndim)
        torch.testing.assert_close(weight[channel], expected, atol=1e-6, rtol=0)


def test_it_starts_as_published():
    torch.manual_seed(0)
    tree = kernel_node(create_block("orepa", 32, 32, 3)).sum
    for name, start in STARTS.items():
        assert tree[name].scale.weight.tolist() == [start] * 32
    fans = {
        "origin": [288],
        "average": [32],
        "prior": [32],
        "pointwise_kxk": [None, 288],
        "pointwise": [32],
        "depthwise": [9, 256],
    }
    for name, sizes in fans.items():
        weights = [p for p in tree[name].parameters() if p.ndim == 4]
        for weight, fan in zip(weights, sizes, strict=True):
            bound = 0 if fan is None else (6 / fan) ** 0.5
            assert 0.95 * bound <= weight.abs().max() <= bound
    x = torch.randn(1, 32, 3, 3)
    assert torch.equal(tree["pointwise_kxk"].step0(x), x)


def test_other_starts():
    tree = kernel_node(create_block("orepa", 32, 32, 3, single_init=True)).sum
    starts = {name: branch.scale.weight[0].item() for name, branch in tree.items()}
    assert starts == {name: float(name == "origin") for name in STARTS}
    options = {"weight_scale": 4.0, "vector_scale": 9.0}
    tree = kernel_node(create_block("orepa", 32, 32, 3, **options)).sum
    assert tree["pointwise"].scale.weight[0] == 3
    assert 0.95 * 4 < tree["pointwise"].step0.conv.weight.max() / (6 / 32) ** 0.5 <= 4
    assert 0.95 * 2 < tree["depthwise"].step0.conv.weight.max() / (6 / 9) ** 0.5 <= 2


@pytest.mark.parametrize("channels", [(16, 32), (32, 16)])
def test_a_pointwise_kernel_starts_with_an_identity(channels):
    tree = kernel_node(create_block("orepa", *channels, 1)).sum
    branch = tree["pointwise_pointwise"]
    square = branch.step0 if channels[0] < channels[1] else branch.step1
    assert torch.equal(square.conv.weight.flatten(1), torch.eye(16))
    assert branch.scale.weight[0] == 0.5
    assert tree["origin"].scale.weight[0] == 1


def test_parameters_are_counted_as_published():
    block = create_block("orepa", 16, 32, 3, activation=None)
    assert sum(p.numel() for p in block.parameters()) == 16512


@pytest.mark.parametrize(("size", "count"), [(1, 2), (3, 6), (7, 18)])
def test_weight_decay_acts_on_the_factors(size, count):
    block = create_block("orepa", 4, 4, size)
    names = block.decayed_parameters()
    assert len(names) == count
    parameters = dict(block.named_parameters())
    assert all(parameters[name].shape == (4,) for name in names)
    assert not any("norm" in name for name in names)


def test_it_trains_as_one_convolution_with_the_gradients_of_its_branches():
    block = trained("orepa", 4, 6, 3, groups=2)
    check_gradients(block, image(2, 4, 7, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"internal_channels": 5}, "internal_channels must be a multiple of the 2 groups, got 5"),
        ({"internal_channels": 0}, "internal_channels must be a multiple of the 2 groups, got 0"),
        ({"depthwise_multiplier": 0}, "depthwise_multiplier must be .* at least 1, got 0"),
        ({"large_kernel": "dbb"}, "large_kernel must be one of orepa, plain, .*got 'dbb'"),
        ({"single_init": 1}, "single_init must be true or false, got 1"),
        ({"weight_scale": 0}, "weight_scale must be a number above 0, got 0"),
        ({"vector_scale": "1"}, "vector_scale must be a number above 0, got '1'"),
        ({"vector_scale": True}, "vector_scale must be a number above 0, got True"),
        ({"kernel_size": 4, "padding": 1}, "kernel_size must be odd .* got 4"),
        ({"kernel_size": 8, "padding": 1}, "kernel_size must be odd .* got 2"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    shape = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 2}
    with pytest.raises(ConfigurationError, match=message):
        create_block("orepa", **{**shape, **options})
