"""Options that say how the branches of a block start."""

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks import expand
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


def last_scales(block):
    """Return what the last BatchNorm of each branch scales by, by name."""
    norms = {
        name: [m for m in branch.modules() if isinstance(m, nn.BatchNorm2d)][-1]
        for name, branch in block.branches.items()
    }
    return {name: norm.weight.unique().tolist() for name, norm in norms.items()}


def test_a_single_start_of_acb_is_its_square():
    torch.manual_seed(0)
    block = create_block("acb", 6, 6, 3, single_start=True, first_scale=0.5).double()
    assert last_scales(block) == {"square": [0.5], "skeleton0": [0.0], "skeleton1": [0.0]}
    x = image()
    torch.testing.assert_close(block(x), block.branches["square"](x).relu())
    block(x).sum().backward()
    assert all(p.grad.abs().max() > 0 for n, p in block.named_parameters() if "norm.weight" in n)


@pytest.mark.parametrize("groups", [1, 6])
def test_the_last_scales_of_dbb_start_from_one_value_and_those_inside_from_1(groups):
    block = create_block("dbb", 6, 6, 3, groups=groups, first_scale=0.25)
    assert {tuple(found) for found in last_scales(block).values()} == {(0.25,)}
    inside = [m.norm.weight for m in block.modules() if hasattr(m, "image_of_zero")]
    assert inside
    assert all(weight.eq(1).all() for weight in inside)
    single = create_block("dbb", 6, 6, 3, groups=groups, first_scale=0.25, single_start=True)
    assert {n: found for n, (found,) in last_scales(single).items()}.pop("kxk") == 0.25
    assert sum(found == [0.0] for found in last_scales(single).values()) == len(single.branches) - 1
    with pytest.raises(ConfigurationError, match="first_scale must be a number above 0, got -1"):
        create_block("dbb", 6, 6, 3, first_scale=-1)


@pytest.mark.parametrize("name", ["acb", "dbb"])
def test_one_norm_of_the_sum_has_no_single_start(name):
    block = create_block(name, 6, 6, 3, post_norm=True, first_scale=0.5)
    assert block.branches.norm.weight.eq(0.5).all()
    with pytest.raises(ConfigurationError, match="single_start must be false where post_norm"):
        create_block(name, 6, 6, 3, post_norm=True, single_start=True)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("shape", [{}, {"stride": 2, "groups": 3}, {"kernel_size": 5}], ids=str)
def test_acb_without_scales_is_one_kernel_too(shape, post_norm):
    torch.manual_seed(0)
    arguments = {"in_channels": 6, "out_channels": 6, "kernel_size": 3, **shape}
    block = create_block("acb", **arguments, use_affine=False, post_norm=post_norm).double()
    assert [name for name, _ in block.named_parameters() if "norm" in name] == []
    x = image()
    truth = calibrate(block, x)(x)
    block.switch_to_deploy()
    assert block.conv.bias is not None
    assert relative_error(block(x), truth) < 1e-12


def test_another_start_needs_scales():
    for options in ({"first_scale": 0.5}, {"single_start": True}):
        with pytest.raises(ConfigurationError, match="use_affine must be true for single_start"):
            create_block("acb", 6, 6, 3, use_affine=False, **options)
    with pytest.raises(ConfigurationError, match="use_affine must be true or false, got None"):
        create_block("acb", 6, 6, 3, use_affine=None)
    network = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
    with pytest.raises(ConfigurationError, match="a BatchNorm with a scale"):
        expand(network, "acb", [torch.randn(4, 6, 9, 9)], use_affine=False)
