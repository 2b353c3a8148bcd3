"""Each paradigm against torch's own layers run one by one, in float64."""

import itertools

import pytest
import torch
from torch import nn
from truth import perturb, relative_error

from repblocks.algebra import (
    AffineMap,
    ConvKernel,
    apply,
    concat_kernels,
    linear_to_pointwise,
    pointwise_to_linear,
)
from repblocks.algebra.axis import Axis
from repblocks.algebra.parallel import concat
from repblocks.algebra.serial import compose
from repblocks.algebra.special import dense_taps, scale, zero_padding
from repblocks.errors import NotFoldable, RepblocksError

EXACT = 1e-12
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def image(channels, ndim, size=9):
    return torch.randn(2, channels, *(size + i for i in range(ndim)), dtype=torch.float64)


def folded(model, channels, ndim=2):
    value = apply(model, AffineMap.identity(channels), torch.empty(0, dtype=torch.float64))
    return ConvKernel.from_affine(value.with_axes(ndim))


def norm(channels, ndim, **options):
    module = NORM[ndim](channels, **options).double().eval()
    with torch.no_grad():
        perturb(module)
    return module


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "padding": 2, "stride": 3, "dilation": 2},
    {"kernel_size": 3, "padding": 0, "groups": 2, "bias": False},
    {"kernel_size": 1, "stride": 2, "groups": 4},
]


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_paradigm_1_conv_then_norm(ndim, geometry, affine):
    model = nn.Sequential(CONV[ndim](4, 8, **geometry).double(), norm(8, ndim, affine=affine))
    x = image(4, ndim)
    kernel = folded(model, 4, ndim)
    assert relative_error(kernel(x), model(x)) < EXACT
    assert relative_error(kernel.to_conv()(x), model(x)) < EXACT
    assert kernel.groups == geometry.get("groups", 1)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("groups", [(1, 1), (2, 4), (8, 8), (8, 1)])
def test_paradigms_2_and_4_branches_of_different_size_add(ndim, biases, groups):
    a = CONV[ndim](8, 8, 5, 2, 2, bias=biases[0], groups=groups[0]).double()
    b = CONV[ndim](8, 8, 1, 2, 0, bias=biases[1], groups=groups[1]).double()
    x = image(8, ndim)
    total = ConvKernel.from_conv(a) + ConvKernel.from_conv(b)
    assert relative_error(total(x), a(x) + b(x)) < EXACT
    assert total.groups == {(1, 1): 1, (2, 4): 2, (8, 8): 8, (8, 1): 1}[groups]
    assert (total.bias is None) == (biases == (False, False))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_paradigms_3_and_4_branches_of_different_size_concatenate(ndim):
    convs = [
        CONV[ndim](4, 6, 3, padding=1).double(),
        CONV[ndim](4, 5, 1, bias=False).double(),
        CONV[ndim](4, 4, 7, padding=3, groups=4).double(),
    ]
    x = image(4, ndim)
    kernel = concat_kernels(*(ConvKernel.from_conv(conv) for conv in convs))
    assert relative_error(kernel(x), torch.cat([conv(x) for conv in convs], 1)) < EXACT


def test_channels_that_are_picked_at_different_places_concatenate():
    """A selection has no weight, but one at several places has taps, of which one is 1."""
    here = AffineMap.identity(2).with_axes(1)
    before = zero_padding(2, [Axis(1, 1, 1, -1)])
    x = image(2, 1)
    conv = ConvKernel.from_affine(concat(here, before)).to_conv(x)
    shifted = torch.nn.functional.pad(x, (1, -1))
    assert torch.equal(conv(x), torch.cat([x, shifted], 1))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kernel_size": 1, "groups": 2}, {"kernel_size": 3, "groups": 4, "stride": 2}),
        ({"kernel_size": 1, "bias": False}, {"kernel_size": 3, "padding": 1}),
        ({"kernel_size": 1, "stride": 2, "bias": False}, {"kernel_size": 3, "padding": 2}),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 1, "groups": 2}),
        ({"kernel_size": 3, "padding": 2, "dilation": 2}, {"kernel_size": 2, "dilation": 3}),
        ({"kernel_size": 3, "padding": 1, "stride": 2, "groups": 8}, {"kernel_size": 3}),
        ({"kernel_size": 2, "groups": 4}, {"kernel_size": 2, "groups": 8, "stride": 2}),
    ],
    ids=str,
)
def test_paradigm_5_one_convolution_after_another(ndim, first, second):
    a, b = CONV[ndim](8, 8, **first).double(), CONV[ndim](8, 16, **second).double()
    x = image(8, ndim, 13)
    kernel = ConvKernel.from_conv(b) @ ConvKernel.from_conv(a)
    assert relative_error(kernel(x), b(a(x))) < EXACT
    common = torch.gcd(torch.tensor(a.groups), torch.tensor(b.groups)).item()
    assert kernel.groups == common


@pytest.mark.parametrize("lengths", range(9, 15))
def test_strides_compose_for_every_input_length(lengths):
    a = nn.Conv1d(2, 3, 4, stride=3, padding=2).double()
    b = nn.Conv1d(3, 2, 2, stride=2, dilation=2).double()
    x = torch.randn(1, 2, lengths + 10, dtype=torch.float64)
    kernel = ConvKernel.from_conv(b) @ ConvKernel.from_conv(a)
    assert relative_error(kernel(x), b(a(x))) < EXACT


def test_rectangular_and_separable_kernels_compose():
    a = nn.Conv2d(6, 6, (1, 5), padding=(0, 2), groups=6).double()
    b = nn.Conv2d(6, 6, (5, 1), padding=0, groups=6).double()
    x = image(6, 2)
    kernel = ConvKernel.from_conv(b) @ ConvKernel.from_conv(a)
    assert (kernel.kernel_size, kernel.groups) == ((5, 5), 6)
    assert relative_error(kernel(x), b(a(x))) < EXACT


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_paradigm_6a_a_shortcut_over_one_convolution(groups):
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=groups).double()
    x = image(6, 2)
    kernel = ConvKernel.from_conv(conv) + ConvKernel.identity(6, like=conv.weight)
    assert relative_error(kernel(x), conv(x) + x) < EXACT
    assert kernel.groups == groups


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("pooling", [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_paradigm_7_average_pooling(ndim, pooling):
    pool = AVERAGE[ndim](*pooling)
    x = image(4, ndim)
    kernel = folded(pool, 4, ndim)
    assert kernel.groups == 4
    assert relative_error(kernel(x), pool(x)) < EXACT


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "count_include_pad"),
        (nn.AvgPool2d(3, 2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(3, divisor_override=2), "divisor_override"),
    ],
)
def test_average_pooling_that_is_no_convolution_is_refused(pool, reason):
    with pytest.raises(NotFoldable, match=reason):
        folded(pool, 4)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_paradigm_8_norm_alone(ndim):
    module, x = norm(6, ndim), image(6, ndim)
    kernel = folded(module, 6, ndim)
    assert (kernel.groups, kernel.kernel_size) == (6, (1,) * ndim)
    assert relative_error(kernel(x), module(x)) < EXACT


@pytest.mark.parametrize("bias", [True, False])
def test_paradigm_9_linear_and_pointwise(bias):
    linear, x = nn.Linear(6, 4, bias=bias).double(), image(6, 2)
    truth = linear(x.movedim(1, -1)).movedim(-1, 1)
    conv = linear_to_pointwise(linear)
    assert relative_error(conv(x), truth) < EXACT
    back = pointwise_to_linear(conv)
    assert torch.equal(back.weight, linear.weight)
    assert back.weight.data_ptr() != linear.weight.data_ptr()
    conv.requires_grad_(False)
    assert not pointwise_to_linear(conv).weight.requires_grad


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"groups": 2}])
def test_only_a_pointwise_convolution_is_linear(options):
    with pytest.raises(NotFoldable, match="kernel size 1, stride 1, no padding and one group"):
        pointwise_to_linear(nn.Conv2d(4, 4, 1, **options))


def test_unequal_and_negative_padding_become_a_convolution():
    weight = torch.randn(3, 2, 2, 3, dtype=torch.float64)
    x = image(2, 2)
    for sides in itertools.product((-1, 0, 2), repeat=4):
        kernel = ConvKernel(weight, padding=(sides[:2], sides[2:]), dilation=(2, 1), stride=(1, 2))
        conv = kernel.to_conv()
        assert min(conv.padding) >= 0
        assert relative_error(conv(x), kernel(x)) < EXACT


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode):
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode).double()
    pointwise, x = nn.Conv2d(4, 4, 1).double(), image(4, 2)
    kernel, one = ConvKernel.from_conv(conv), ConvKernel.from_conv(pointwise)
    for found, truth in [
        (one @ kernel, pointwise(conv(x))),
        (kernel @ one, conv(pointwise(x))),
        (kernel + one, conv(x) + pointwise(x)),
    ]:
        assert relative_error(found(x), truth) < EXACT
        assert relative_error(found.to_conv()(x), truth) < EXACT


# Torch warns that it copies the input.
@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (4, 1), (3, 2), ((2, 5), 1)])
def test_padding_same(kernel_size, dilation):
    conv = nn.Conv2d(2, 3, kernel_size, padding="same", dilation=dilation).double()
    x = image(2, 2)
    assert relative_error(ConvKernel.from_conv(conv).to_conv()(x), conv(x)) < EXACT


def test_no_operation_changes_its_inputs():
    a, b = (ConvKernel(torch.randn(4, 4, k, k), torch.randn(4)) for k in (3, 1))
    before = [t.clone() for t in (a.weight, a.bias, b.weight, b.bias)]
    _ = concat_kernels(b @ a, a @ b), a + ConvKernel(a.weight), b + b, a.to_conv()
    assert all(map(torch.equal, before, (a.weight, a.bias, b.weight, b.bias)))


def test_gradients_pass_through_every_identity():
    three = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    one = torch.randn(4, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def function(three, one, bias):
        kernel = ConvKernel(one, bias) @ ConvKernel(three, bias, groups=2, padding=1)
        total = kernel + ConvKernel.identity(4, like=three)
        both = concat_kernels(total, ConvKernel(one))
        return both.weight, both.bias

    assert torch.autograd.gradcheck(function, (three, one, bias))


def test_a_scale_is_a_map_too():
    factor, x = torch.randn(4, dtype=torch.float64), image(4, 2)
    conv = ConvKernel.from_conv(nn.Conv2d(4, 6, 3, padding=1, bias=False).double())
    after = ConvKernel.from_affine(compose(scale(torch.ones(6).double() * 3), conv.to_affine()))
    assert relative_error(after(x), 3 * conv(x)) < EXACT
    before = ConvKernel.from_affine(compose(conv.to_affine(), scale(factor)))
    assert relative_error(before(x), conv(x * factor.view(-1, 1, 1))) < EXACT


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_dilated_kernel_is_a_dense_one_with_zeros(ndim):
    conv = CONV[ndim](4, 4, 3, padding=2, dilation=2, groups=2).double()
    x = image(4, ndim)
    dense = ConvKernel.from_affine(dense_taps(ConvKernel.from_conv(conv).to_affine()))
    assert (dense.kernel_size, dense.dilation, dense.groups) == ((5,) * ndim, (1,) * ndim, 2)
    assert relative_error(dense(x), conv(x)) < EXACT
    with pytest.raises(RepblocksError, match="no taps to spread"):
        dense_taps(AffineMap.identity(4))
