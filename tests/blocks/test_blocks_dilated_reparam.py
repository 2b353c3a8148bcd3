"""A large kernel beside small ones with dilation, against plain torch and dense-sparse kernels."""

import pytest
import torch
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.blocks import create_block
from repblocks.blocks.dilated_reparam import PUBLISHED, default_kernels
from repblocks.errors import ConfigurationError

EXACT = 1e-12
CHANNELS = 4


def image(size=35):
    return torch.randn(2, CHANNELS, size, size + 1, dtype=torch.float64)


def ready(kernel_size, x=None, **options):
    torch.manual_seed(0)
    arguments = {"groups": CHANNELS, **options}
    block = create_block("dilated_reparam", CHANNELS, CHANNELS, kernel_size, **arguments)
    return calibrate(block.double(), image() if x is None else x)


def names(block):
    return [*block.branches]


def normed(x, norm):
    moments = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return functional.batch_norm(x, *moments, eps=norm.eps)


def by_hand(block, x, kernels, kernel_size, stride=1):
    """Sum the large kernel and each small one with its dilation, padded to the same size."""
    large = block.branches["large"]
    weight = large.conv.weight
    total = functional.conv2d(x, weight, None, stride, kernel_size // 2, 1, CHANNELS)
    total = normed(total, large.norm)
    for size, dilation in kernels:
        branch = block.branches[f"k{size}_d{dilation}"]
        padding = dilation * (size - 1) // 2
        arguments = (None, stride, padding, dilation, CHANNELS)
        small = functional.conv2d(x, branch.conv.weight, *arguments)
        total = total + normed(small, branch.norm)
    return total


@pytest.mark.parametrize("kernel_size", PUBLISHED)
def test_the_published_rows_are_the_default(kernel_size):
    block, x = ready(kernel_size, activation=None), image()
    with torch.no_grad():
        truth = by_hand(block, x, PUBLISHED[kernel_size], kernel_size)
        assert relative_error(block(x), truth) < EXACT
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT
    assert block.conv.kernel_size == (kernel_size, kernel_size)
    assert block.conv.groups == CHANNELS


@pytest.mark.parametrize("kernel_size", range(1, 33, 2))
def test_every_odd_size_has_small_kernels_that_fit(kernel_size):
    kernels = default_kernels(kernel_size)
    assert all(dilation * (size - 1) + 1 <= kernel_size for size, dilation in kernels)
    assert len(set(kernels)) == len(kernels)
    assert len(kernels) == 5 if kernel_size > 9 else len(kernels) == (kernel_size + 1) // 2 - 1
    block, x = ready(kernel_size, activation=None), image()
    with torch.no_grad():
        truth = by_hand(block, x, kernels, kernel_size)
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT


def test_larger_ones_go_on_as_the_largest_published_row_does():
    radius = 8
    own = ((5, 1), (radius | 1, 2), *((3, radius * part // 8) for part in (4, 5, 7)))
    assert own == PUBLISHED[17]
    assert default_kernels(31) == ((5, 1), (15, 2), (3, 7), (3, 9), (3, 13))


def test_the_kernel_is_dense_with_zeros_between_the_taps():
    block = ready(7, kernel_sizes=[3], dilations=[3])
    for norm in (block.branches["large"].norm, block.branches["k3_d3"].norm):
        norm.reset_running_stats()
        norm.eps = 0.0
        torch.nn.init.ones_(norm.weight)
    sparse = block.equivalent_kernel().weight - block.branches["large"].conv.weight
    small = block.branches["k3_d3"].conv.weight
    assert relative_error(sparse[:, :, ::3, ::3], small) < EXACT
    sparse[:, :, ::3, ::3] = 0
    assert not sparse.any()


@pytest.mark.parametrize(
    "shape",
    [
        {"stride": 2},
        {"groups": 1},
        {"groups": 2, "dilation": 2},
        {"padding": 0},
        {"padding": 5, "stride": 3, "dilation": 2},
    ],
    ids=str,
)
def test_what_the_mathematics_allows_beyond_depthwise(shape):
    block, x = ready(7, kernel_sizes=[5, 3], dilations=[1, 3], **shape), image()
    with torch.no_grad():
        truth = block(x)
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT
    assert block.conv.kernel_size == (7, 7)
    assert block.conv.stride == block.shape.stride


@pytest.mark.parametrize("ndim", [1, 3])
def test_in_other_dimensions(ndim):
    x = torch.randn(2, CHANNELS, *(9 + i for i in range(ndim)), dtype=torch.float64)
    block = ready(7, x, ndim=ndim)
    truth = block(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < EXACT


def test_on_a_narrow_axis_the_defaults_keep_the_taps_that_fit():
    block = ready((5, 1))
    assert [b.conv.kernel_size for b in block.branches.values()] == [(5, 1), (3, 1), (3, 1)]
    block = ready((5, 3))
    assert [b.conv.kernel_size for b in block.branches.values()] == [(5, 3), (3, 3), (3, 1)]


def test_a_kernel_of_one_tap_has_nothing_beside_it():
    assert names(ready(1)) == ["large"]
    assert names(ready(1, kernel_sizes=[5], dilations=[2])) == ["large"]
    assert names(ready(3)) == ["large", "k1_d1"]


@pytest.mark.parametrize(
    ("kernel_size", "options", "message"),
    [
        (6, {"padding": 3}, r"kernel_size must be odd for dilated kernels.*got \(6, 6\)"),
        (7, {"kernel_sizes": [5]}, "must both be given or both left out, got None"),
        (7, {"dilations": [5]}, "must both be given or both left out, got None"),
        (7, {"kernel_sizes": [5, 3], "dilations": [1]}, "as many in each, got 2 and 1"),
        (7, {"kernel_sizes": [4], "dilations": [1]}, r"kernel_sizes must be odd.*got \[4\]"),
        (7, {"kernel_sizes": 5, "dilations": 1}, "must be a list of whole numbers.*got 5"),
        (7, {"kernel_sizes": [3], "dilations": [0]}, r"dilations must be a list.*got \[0\]"),
        (
            7,
            {"kernel_sizes": [5], "dilations": [2]},
            "must be 9 or .* 5 taps with dilation 2.*got 7",
        ),
        (7, {"kernel_sizes": [3, 3], "dilations": [2, 2]}, r"once, got \[3, 3\] and \[2, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused(kernel_size, options, message):
    with pytest.raises(ConfigurationError, match=message):
        create_block("dilated_reparam", CHANNELS, CHANNELS, kernel_size, **options)
