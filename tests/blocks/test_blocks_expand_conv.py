"""ExpandNets: both forms against stacked convolutions, their channels, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from weight_space_forms import check_forms, check_gradients, image, kernel_node, trained

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def convolutions(block):
    return [m for m in block.branches.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]


def stacked(block, x, padding, stride, dilation=1, groups=1):
    """Pad, and run the convolutions; the last one of more than one tap has the stride."""
    convs = convolutions(block)
    last = max(number for number, conv in enumerate(convs) if max(conv.kernel_size) > 1)
    x = functional.pad(x, [padding] * 2 * (x.ndim - 2))
    for number, conv in enumerate(convs):
        step = stride if number == last else 1
        x = CONVOLVE[x.ndim - 2](x, conv.weight, conv.bias, step, 0, dilation, groups)
    return x


@pytest.mark.parametrize("form", ["cl", "ck"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("size", "stride", "dilation", "groups"),
    [(3, 1, 1, 1), (5, 1, 1, 1), (7, 2, 1, 1), (5, 2, 2, 2), (4, 1, 1, 4)],
)
def test_the_kernel_is_the_stack_of_its_convolutions(form, norm, size, stride, dilation, groups):
    options = {"form": form, "norm": norm, "expansion_rate": 3, "groups": groups}
    padding = dilation * (size // 2)
    block = trained("expand_conv", 4, 8, size, stride, padding, dilation, **options)
    x = image(2, 4, 11, 13)
    check_forms(block, x, stacked(block, x, padding, stride, dilation, groups))


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("form", ["cl", "ck"])
def test_other_dimensions(ndim, form):
    block = trained("expand_conv", 2, 4, 5, 2, ndim=ndim, form=form, norm=False, expansion_rate=2)
    x = image(2, 2, *(8 + i for i in range(ndim)))
    check_forms(block, x, stacked(block, x, 2, 2))


@pytest.mark.parametrize(
    ("form", "size", "channels", "sizes"),
    [
        ("cl", 3, [6, 24, 40, 10], [1, 3, 1]),
        ("cl", 7, [6, 24, 40, 10], [1, 7, 1]),
        ("ck", 3, [6, 10], [3]),
        ("ck", 5, [6, 40, 10], [3, 3]),
        ("ck", 7, [6, 24, 40, 10], [3, 3, 3]),
        ("ck", 9, [6, 24, 40, 40, 10], [3, 3, 3, 3]),
    ],
)
def test_channels_and_kernel_sizes(form, size, channels, sizes):
    convs = convolutions(create_block("expand_conv", 6, 10, size, form=form))
    assert [conv.in_channels for conv in convs] + [convs[-1].out_channels] == channels
    assert [conv.kernel_size for conv in convs] == [(k, k) for k in sizes]


def test_a_rectangle_is_a_series_of_rectangles():
    block = trained("expand_conv", 2, 3, (5, 2), 2, (2, 1), form="ck", norm=False)
    sizes = [conv.kernel_size for conv in convolutions(block)]
    assert sizes == [(3, 2), (3, 1)]
    x = image(2, 2, 9, 10)
    padded = functional.pad(x, [1, 1, 2, 2])
    first, second = convolutions(block)
    inner = functional.conv2d(padded, first.weight, first.bias)
    check_forms(block, x, functional.conv2d(inner, second.weight, second.bias, 2))


def test_biases_are_there_where_no_norm_is():
    for norm in (True, False):
        block = create_block("expand_conv", 4, 4, 3, norm=norm)
        assert all((conv.bias is None) == norm for conv in convolutions(block))


def test_it_trains_as_one_convolution_with_the_gradients_of_its_branches():
    block = trained("expand_conv", 3, 4, 5, form="ck", norm=False)
    check_gradients(block, image(2, 3, 7, 6))


@pytest.mark.parametrize("obstacle", ["hook", "module"])
def test_what_the_rules_do_not_know_runs_branch_by_branch(obstacle):
    block, x = trained("expand_conv", 3, 4, 3, norm=False), image(1, 3, 6, 6)
    series = kernel_node(block)
    if obstacle == "hook":
        series.conv1.register_forward_hook(lambda _m, _x, y: 2 * y)
    else:
        series.conv1 = nn.Sequential(series.conv1, nn.ReLU())
    with torch.no_grad():
        assert torch.equal(block.train()(x), block.eval()(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expansion_rate": 0}, "expansion_rate must be a whole number of at least 1, got 0"),
        ({"expansion_rate": 1.5}, "expansion_rate must be a whole number of at least 1, got 1.5"),
        ({"form": "fc"}, "form must be one of cl, ck, got 'fc'"),
        ({"norm": None}, "norm must be true or false, got None"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        create_block("expand_conv", 4, 4, 3, **options)
