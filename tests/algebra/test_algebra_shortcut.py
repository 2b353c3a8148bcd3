"""Paradigm 6b: the shortcut as dirac channels."""

import pytest
import torch
from torch import nn
from truth import relative_error

from repblocks.algebra import ConvKernel, expand_shortcut


@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(), nn.Tanh(), nn.SiLU()])
@pytest.mark.parametrize(("groups", "middle_groups"), [(12, 1), (3, 1), (1, 1), (3, 3)])
def test_the_shortcut_is_the_activated_input(activation, groups, middle_groups):
    torch.manual_seed(0)
    first = nn.Conv2d(12, 12, 5, padding=2, groups=groups).double()
    middle = nn.Conv2d(12, 48, 1, groups=middle_groups).double()
    last = nn.Conv2d(48, 12, 1).double()
    x = torch.randn(2, 12, 7, 8, dtype=torch.float64)
    truth = last(activation(middle(first(x)))) + activation(x)
    a, b, c = expand_shortcut([ConvKernel.from_conv(conv) for conv in (first, middle, last)])
    assert relative_error(c(activation(b(a(x)))), truth) < 1e-12
    assert a.groups == groups


@pytest.mark.parametrize("channels", [8, 64, 96])
def test_the_price_in_multiply_adds(channels):
    c = channels
    kernels = [
        ConvKernel(torch.zeros(c, 1, 7, 7), padding=3, groups=c),
        ConvKernel(torch.zeros(4 * c, c, 1, 1)),
        ConvKernel(torch.zeros(c, 4 * c, 1, 1)),
    ]
    assert sum(kernel.macs for kernel in kernels) == 8 * c * c + 49 * c
    assert sum(kernel.macs for kernel in expand_shortcut(kernels)) == 15 * c * c + 98 * c


def test_two_kernels_are_enough():
    a, b = nn.Conv1d(3, 5, 3, padding=1).double(), nn.Conv1d(5, 3, 1).double()
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    first, last = expand_shortcut([ConvKernel.from_conv(a), ConvKernel.from_conv(b)])
    assert relative_error(last(first(x).relu()), b(a(x).relu()) + x.relu()) < 1e-12
