"""DO-Conv: its kernel against the formula of the paper, its start, and what it refuses."""

import pytest
import torch
from torch.nn import functional
from truth import relative_error
from weight_space_forms import check_forms, check_gradients, image, kernel_node, trained

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError


def composed(block, groups, multiplier):
    """Return (D + I) W as in section 3, with the D of the channel that is read."""
    series = kernel_node(block)
    pointwise, delta = series.pointwise.conv.weight, series.depthwise["delta"].conv.weight
    out_channels, in_channels = pointwise.shape[0], delta.shape[0] // multiplier
    taps = delta[0].numel()
    identity = torch.zeros(taps, multiplier, dtype=torch.float64)
    for number in range(multiplier // taps * taps):
        identity[number % taps, number] = 1
    d = delta.view(in_channels, multiplier, taps).transpose(1, 2) + identity
    w = pointwise.view(out_channels, in_channels // groups, multiplier)
    rows = []
    for channel in range(out_channels):
        start = channel // (out_channels // groups) * (in_channels // groups)
        read = d[start : start + in_channels // groups]
        rows.append(torch.einsum("ims,is->im", read, w[channel]))
    return torch.stack(rows).view(out_channels, in_channels // groups, *delta.shape[2:])


@pytest.mark.parametrize("multiplier", [9, 12, 20])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("norm", [True, False])
def test_the_kernel_is_that_of_the_paper(multiplier, groups, norm):
    options = {"depth_multiplier": multiplier, "norm": norm}
    block = trained("do_conv", 4, 8, 3, 2, 1, 2, groups=groups, **options)
    x = image(2, 4, 9, 10)
    kernel = composed(block, groups, multiplier)
    bias = None if norm else kernel_node(block).pointwise.conv.bias
    check_forms(block, x, functional.conv2d(x, kernel, bias, 2, 1, 2, groups))


@pytest.mark.parametrize(("in_channels", "out_channels"), [(6, 6), (4, 8)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_starts_as_a_plain_convolution(in_channels, out_channels, groups):
    if in_channels % groups:
        return
    torch.manual_seed(0)
    block = create_block("do_conv", in_channels, out_channels, 3, groups=groups).double()
    node, x = kernel_node(block), image(2, in_channels, 7, 7)
    weight = node.pointwise.conv.weight
    weight = weight.view(out_channels, in_channels // groups, 3, 3)
    expected = functional.conv2d(x, weight, None, 1, 1, 1, groups)
    assert relative_error(node(x), expected) < 1e-12
    bound = (in_channels // groups * 9) ** -0.5
    assert 0.8 * bound < weight.abs().max() <= bound
    assert not node.depthwise["delta"].conv.weight.any()


def test_a_pointwise_kernel_is_left_as_it_is():
    block = create_block("do_conv", 4, 8, 1, 2)
    assert sum(p.numel() for p in block.branches.parameters()) == 4 * 8 + 2 * 8


def test_it_trains_as_one_convolution_with_the_gradients_of_its_branches():
    block = trained("do_conv", 4, 8, 3, norm=False)
    check_gradients(block, image(2, 4, 7, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_multiplier": 8}, r"at least 9, the taps of kernel_size \(3, 3\), got 8"),
        ({"depth_multiplier": 9.0}, r"depth_multiplier must be a whole number.*got 9\.0"),
        ({"norm": 1}, "norm must be true or false, got 1"),
        ({"kernel_size": 1, "norm": "no"}, "norm must be true or false, got 'no'"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    arguments = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options}
    with pytest.raises(ConfigurationError, match=message):
        create_block("do_conv", **arguments)
