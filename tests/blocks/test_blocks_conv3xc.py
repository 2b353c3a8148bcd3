"""Conv3XC: its forms against the official formula, its channels, and what is refused."""

import pytest
from torch.nn import functional
from weight_space_forms import check_forms, check_gradients, image, kernel_node, trained

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError


def published(block, x, stride=1, groups=1):
    """Pad first; 1 x 1, 3 x 3 with the stride, 1 x 1; and a 1 x 1 of the unpadded input."""
    tree = kernel_node(block)
    y = functional.pad(x, [1, 1, 1, 1])
    for number in range(3):
        conv = tree["series"][number + 1].conv
        step = stride if number == 1 else 1
        y = functional.conv2d(y, conv.weight, conv.bias, step, groups=groups)
    shortcut = tree["shortcut"].conv
    return y + functional.conv2d(x, shortcut.weight, shortcut.bias, stride, groups=groups)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("gain", [1, 2])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4), (3, 2)])
def test_the_kernel_is_the_published_block(norm, gain, stride, groups):
    block = trained("conv3xc", 4, 8, 3, stride, groups=groups, gain=gain, norm=norm)
    x = image(2, 4, 8, 9)
    check_forms(block, x, published(block, x, stride, groups))


def test_the_shortcut_lies_at_the_centre_whatever_the_padding():
    block = trained("conv3xc", 3, 4, 5, padding=0, norm=False)
    x = image(2, 3, 9, 9)
    tree = kernel_node(block)
    y = tree["series"](x) + tree["shortcut"][-1](x[:, :, 2:-2, 2:-2])
    check_forms(block, x, y)


def test_channels():
    block = create_block("conv3xc", 6, 10, 3)
    series = kernel_node(block)["series"]
    assert [series[i].conv.out_channels for i in (1, 2, 3)] == [12, 20, 10]


def test_it_trains_as_one_convolution_with_the_gradients_of_its_branches():
    block = trained("conv3xc", 3, 4, 3, norm=False)
    check_gradients(block, image(2, 3, 7, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gain": 0}, "gain must be a whole number of at least 1, got 0"),
        ({"gain": True}, "gain must be a whole number of at least 1, got True"),
        ({"norm": "batch"}, "norm must be true or false, got 'batch'"),
        ({"kernel_size": 4, "padding": 1}, "kernel_size must be odd .* got 4"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    arguments = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options}
    with pytest.raises(ConfigurationError, match=message):
        create_block("conv3xc", **arguments)
