"""A convolution of a patch is a matrix of its values (paradigm 20)."""

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks.algebra import AffineMap, ConvKernel, apply
from repblocks.algebra.patches import on_patches

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZE = {1: (7,), 2: (4, 7), 3: (3, 4, 2)}


def patches(ndim, channels=6):
    torch.manual_seed(1)
    return torch.randn(5, channels, *SIZE[ndim], dtype=torch.float64)


def flat(x):
    return x.flatten(1).unsqueeze(2)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 1, "groups": 6},
        {"padding": 1, "groups": 2, "bias": False},
        {"padding": 2, "dilation": 2},
        {"padding": 2, "stride": 2, "groups": 3},
        {"padding": 1, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_a_convolution_is_the_matrix_of_its_patch(ndim, options):
    torch.manual_seed(0)
    conv = CONVS[ndim](6, 6, 3, **options).double()
    x = patches(ndim)
    value = on_patches(ConvKernel.from_conv(conv).to_affine(), SIZE[ndim])
    kernel = ConvKernel.from_affine(value.with_axes(1))
    assert kernel.groups % conv.groups == 0
    assert relative_error(kernel(flat(x)), flat(conv(x))) < 1e-12


def test_a_norm_acts_on_each_position_alone():
    x = patches(2)
    norm = calibrate(nn.BatchNorm2d(6).double(), x)
    value = on_patches(apply(norm, AffineMap.identity(6)), SIZE[2])
    kernel = ConvKernel.from_affine(value.with_axes(1))
    assert kernel.weight.shape == (6 * 28, 1, 1)
    assert relative_error(kernel(flat(x)), flat(norm(x))) < 1e-12


def test_the_matrix_is_differentiable():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 3, padding=1).double()
    value = on_patches(ConvKernel.from_conv(conv).to_affine(), (4, 7))
    (ConvKernel.from_affine(value.with_axes(1))(flat(patches(2, 3))) ** 2).mean().backward()
    found = conv.weight.grad.clone()
    conv.zero_grad()
    (conv(patches(2, 3)) ** 2).mean().backward()
    assert relative_error(found, conv.weight.grad) < 1e-12
