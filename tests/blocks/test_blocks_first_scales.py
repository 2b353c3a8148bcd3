"""Options that say how the branches of a block start."""

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError


def image(channels=6, size=9):
    return torch.randn(2, channels, size, size + 1, dtype=torch.float64)


def test_repvgg_with_factors_is_the_block_of_a_hyper_search():
    torch.manual_seed(0)
    block = create_block("repvgg", 6, 6, 3, scale=0.5).double()
    branches = block.branches.sum
    starts = {name: branch.scale.weight.unique().item() for name, branch in branches.items()}
    assert starts == {"kxk": 0.5, "pointwise": 0.5, "identity": 1.0}
    assert sum(isinstance(module, nn.BatchNorm2d) for module in block.modules()) == 1
    for branch in branches.values():
        nn.init.normal_(branch.scale.weight)
    x = image()
    truth = calibrate(block, x)(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < 1e-12
    assert "identity" not in create_block("repvgg", 6, 6, 3, 2, scale=1.0).branches.sum
    with pytest.raises(ConfigurationError, match="scale must be a number above 0, got 0"):
        create_block("repvgg", 6, 6, 3, scale=0)


@pytest.mark.parametrize("post_norm", [False, True])
def test_all_scales_of_acb_start_from_the_same_value(post_norm):
    block = create_block("acb", 6, 6, 3, first_scale=1 / 3, post_norm=post_norm)
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == (1 if post_norm else 3)
    for norm in norms:
        torch.testing.assert_close(norm.weight.detach(), torch.full((6,), 1 / 3))
    with pytest.raises(ConfigurationError, match="first_scale must be a number above 0, got 0"):
        create_block("acb", 6, 6, 3, first_scale=0)


@pytest.mark.parametrize("groups", [1, 6])
def test_a_single_start_of_dbb_is_its_k_x_k_branch(groups):
    torch.manual_seed(0)
    block = create_block("dbb", 6, 6, 3, groups=groups, single_start=True).double()
    x = image()
    torch.testing.assert_close(block(x), block.branches["kxk"](x).relu())
    usual = create_block("dbb", 6, 6, 3, groups=groups).double()
    assert relative_error(usual(x), usual.branches["kxk"](x).relu()) > 0.1
    block(x).sum().backward()
    assert block.branches["pointwise_kxk"].kxk.norm.weight.grad.abs().min() > 0, "it leaves zero"
    with pytest.raises(ConfigurationError, match="single_start must be true or false, got 1"):
        create_block("dbb", 6, 6, 3, single_start=1)
