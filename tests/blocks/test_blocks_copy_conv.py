"""CopyConv: which outputs have which kernel, and the sum of mixed forms by formulas."""

import pytest
import torch
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError


@pytest.mark.parametrize("stride", [1, 2])
def test_each_channel_goes_through_both_kernels(stride):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 12, 13, dtype=torch.float64)
    block = create_block("copy_conv", 6, 12, 7, stride, groups=6, activation=None).double()
    calibrate(block, x)
    small, large = block.branches.kernels.values()
    with torch.no_grad():
        pairs = [part(x) for part in (small, large)]
        truth = block.branches.norm(torch.stack(pairs, 2).flatten(1, 2))
        assert relative_error(block(x), truth) < 1e-12
        weight = small["corners"].conv.weight
        found = small["corners"](x)
        assert relative_error(functional.conv2d(x, weight, None, stride, 1, 2, 6), found) < 1e-12
        assert set(small) == {"square", "corners"} | (
            {"series3"} if stride == 2 else {"3x1", "1x3"}
        )
        assert set(large) == {"square", "5x3", "3x5", "series7", "series5"}
        across, down = (conv.conv.weight for conv in large["series7"])
        row = functional.conv2d(x, across, None, (1, stride), (0, 3), 1, 6)
        column = functional.conv2d(row, down, None, (stride, 1), (3, 0), 1, 6)
        assert relative_error(large["series7"](x), column) < 1e-12
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < 1e-12
    assert block.conv.groups == 6


def test_an_even_small_kernel_is_refused():
    with pytest.raises(ConfigurationError, match="kernel_size and small_kernel must be odd.*4"):
        create_block("copy_conv", 6, 12, 7, groups=6, small_kernel=4)
