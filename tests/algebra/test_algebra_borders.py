"""What must be refused, with its reason; and that the refused fold would have been wrong."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from repblocks.algebra import (
    AffineMap,
    ConvKernel,
    apply,
    concat_kernels,
    expand_shortcut,
    is_batch_norm,
)
from repblocks.errors import ConfigurationError, NotFoldable


def kernel(size, bias=False, channels=(4, 4), **options):
    weight = torch.randn(channels[1], channels[0], *([size] * 2))
    return ConvKernel(weight, torch.randn(channels[1]) if bias else None, **options)


def fold(model, channels=4):
    return apply(model, AffineMap.identity(channels))


@pytest.mark.parametrize(
    ("second", "first", "reason"),
    [
        (kernel(3, padding=1), kernel(1, bias=True), "pads axis 0 with zeros"),
        (kernel(3, padding=1), kernel(3), "not pointwise there: 3 taps"),
        (kernel(3, padding=(0, 1)), kernel(1, padding=((0, 0), (-1, 0))), "axis 1"),
        (kernel(3), kernel(3, channels=(4, 5)), "reads 4 channels, the first gives 5"),
        (
            kernel(3, padding=1, padding_mode="reflect"),
            kernel(1, stride=2),
            "Padding of mode 'reflect' on axis 0",
        ),
        (
            kernel(3, padding=(1, 0)),
            ConvKernel(torch.randn(4, 4, 1, 3), padding=(0, 1), padding_mode="reflect"),
            "padding modes differ",
        ),
    ],
)
def test_composition_is_refused(second, first, reason):
    with pytest.raises(NotFoldable, match=reason):
        _ = second @ first


def test_the_refused_border_would_have_been_wrong():
    one, three = nn.Conv2d(4, 4, 1).double(), nn.Conv2d(4, 4, 3, padding=1).double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    naive = ConvKernel(three.weight, three.bias) @ ConvKernel.from_conv(one)
    moved = ConvKernel(naive.weight, naive.bias, padding=1)
    error = (moved(x) - three(one(x))).abs()
    assert error[..., 1:-1, 1:-1].max() < 1e-12
    assert error.max() > 1e-3


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (kernel(3, padding=1), kernel(3, padding=1, stride=2), r"strides .* differ: \[1, 2\]"),
        (kernel(3, padding=1), kernel(1, padding=1), r"extent is \[-1, 1\]"),
        (kernel(3, padding=1, stride=2), kernel(2, stride=2), r"extent is \[-2, -1\]"),
        (kernel(1), kernel(1, channels=(3, 4)), r"read \[3, 4\] input channels"),
        (kernel(1), kernel(1, channels=(4, 3)), r"\[3, 4\] output channels"),
        (
            kernel(3, padding=1, padding_mode="reflect"),
            kernel(3, padding=1),
            r"padding modes .* differ: \['reflect', 'zeros'\]",
        ),
    ],
)
def test_sum_is_refused(a, b, reason):
    with pytest.raises(NotFoldable, match=reason):
        _ = a + b


def test_circular_padding_does_not_crop():
    first = kernel(1, padding=1, padding_mode="circular")
    with pytest.raises(NotFoldable, match="Circular padding on one side"):
        _ = kernel(3, padding=((0, -2), (0, 0))) @ first
    with pytest.raises(ConfigurationError, match=r"must not crop in circular mode.*\(1, -1\)"):
        kernel(3, padding=((1, -1), (0, 0)), padding_mode="circular")


def test_maps_of_different_dimensions_do_not_mix():
    with pytest.raises(NotFoldable, match="A 1-d map cannot be used in 2 dimensions"):
        _ = ConvKernel(torch.randn(4, 4, 3)) + kernel(3)


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_a_norm_that_does_more_is_no_batch_norm():
    assert not is_batch_norm(NormAndActivation(4))
    with pytest.raises(NotFoldable, match="no rule for NormAndActivation"):
        fold(NormAndActivation(4).eval())


def test_norms_that_use_the_batch_are_refused():
    with pytest.raises(NotFoldable, match="call .eval"):
        fold(nn.BatchNorm2d(4))
    with pytest.raises(NotFoldable, match="without running statistics"):
        fold(nn.BatchNorm2d(4, track_running_stats=False).eval())


def test_dropout_is_the_identity_in_evaluation_mode_only():
    assert fold(nn.Dropout(0.5).eval()).is_selection
    with pytest.raises(NotFoldable, match="random"):
        fold(nn.Dropout(0.5))


def test_an_operation_without_a_rule_is_refused():
    with pytest.raises(NotFoldable, match="no rule for ReLU"):
        fold(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


def test_a_convolution_of_its_own_kind_is_refused():
    with pytest.raises(NotFoldable, match="OwnConvolution convolves in a way of its own"):
        fold(OwnConvolution(4, 4, 1))


def test_a_parametrized_weight_is_read_as_it_is_used():
    conv = parametrizations.weight_norm(nn.Conv2d(4, 4, 3).double())
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    assert torch.allclose(ConvKernel.from_affine(fold(conv))(x), conv(x), rtol=1e-12)


def test_linear_and_zero_padding_have_rules():
    x = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    model = nn.Sequential(nn.ZeroPad2d((1, 0, 2, 3)), nn.Conv2d(4, 2, 3).double())
    assert torch.allclose(ConvKernel.from_affine(fold(model))(x), model(x), rtol=1e-12)
    linear = nn.Linear(4, 3)
    assert torch.equal(fold(linear).bias(), linear.bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": torch.zeros(4, 4)}, "1 to 3 axes"),
        ({"groups": 3}, "groups must divide the 4 output channels, got 3"),
        ({"bias": torch.zeros(3)}, r"bias must have shape \(4,\), got \(3,\)"),
        ({"stride": (1, 2, 3)}, r"stride must be one whole number or 2 of them.*\(1, 2, 3\)"),
        ({"padding": (1,)}, "padding must be one whole number, 2 of them"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of .*'mirror'"),
    ],
)
def test_a_kernel_checks_its_shapes(options, message):
    with pytest.raises(ConfigurationError, match=message):
        ConvKernel(**{"weight": torch.zeros(4, 4, 3, 3), **options})


def test_kernels_of_several_dtypes_are_refused():
    wide = ConvKernel(torch.zeros(4, 4, 1, 1, dtype=torch.float64))
    for operation in (ConvKernel.__add__, ConvKernel.__matmul__, concat_kernels):
        with pytest.raises(ConfigurationError, match=r"got torch\.float32, torch\.float64"):
            operation(wide, kernel(1))
    with pytest.raises(ConfigurationError, match=r"weight, torch\.float64, got torch\.float32"):
        ConvKernel(wide.weight, torch.zeros(4))


def test_a_shortcut_needs_kernels_that_keep_its_shape():
    with pytest.raises(NotFoldable, match="two or more kernels, got 1"):
        expand_shortcut([kernel(1)])
    with pytest.raises(NotFoldable, match="adds its 4 channels to the output, which has 6"):
        expand_shortcut([kernel(1), kernel(1, channels=(4, 6))])
    with pytest.raises(NotFoldable, match="output sizes"):
        expand_shortcut([kernel(3), kernel(1)])
