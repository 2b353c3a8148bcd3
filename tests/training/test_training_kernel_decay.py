"""The decay of what is deployed, against kernels computed by hand."""

import pytest
import torch
from torch import nn
from truth import calibrate, fitting

from repblocks.blocks import CONV_BLOCKS, STAGE_BLOCKS, ConvBlock, anneal, create_block
from repblocks.blocks._stage import StageBlock
from repblocks.errors import ConfigurationError
from repblocks.training import OptimizerConfig, kernel_penalty
from repblocks.training.kernel_decay import penalised_names
from repblocks.training.optimization import build_optimizer

#: ``rm_residual`` becomes wider convolutions, whose ones for the shortcut are no weights.
OF_STAGES = [
    name
    for name in STAGE_BLOCKS
    if issubclass(STAGE_BLOCKS[name], StageBlock) and name != "rm_residual"
]
ARGUMENTS = {"unireplknet": {"kernel_size": 7}, "replk": {"kernel_size": 7}}


def network(name):
    torch.manual_seed(0)
    model = nn.Sequential(create_block(name, 6, 6, 3), nn.Conv2d(6, 2, 1)).double()
    return calibrate(model, torch.randn(4, 6, 9, 8, dtype=torch.float64)).train()


@pytest.mark.parametrize("name", CONV_BLOCKS)
def test_it_is_half_the_square_of_the_deployed_kernel(name):
    model = network(name)
    penalty = kernel_penalty(model)
    assert all(module.training for module in model.modules())
    penalty.backward()
    names = penalised_names(model)
    kernels = {n for n, p in model.named_parameters() if n in names and p.ndim > 1}
    assert any(model.get_parameter(n).grad is not None for n in kernels)
    assert model[1].weight.grad is None
    model.eval()[0].switch_to_deploy()
    deployed = sum(
        m.weight.square().sum()
        for m in model[0].modules()
        if isinstance(m, nn.Conv2d) and m in [model[0].conv]
    )
    torch.testing.assert_close(penalty.detach(), deployed / 2)


@pytest.mark.parametrize("name", OF_STAGES)
def test_affine_parts_are_decayed_as_what_they_become(name):
    torch.manual_seed(0)
    cls = STAGE_BLOCKS[name]
    block = cls(8, **ARGUMENTS.get(name, {}), **fitting(cls, 9, 8)).double()
    anneal(block, 1.0)
    calibrate(block, torch.randn(4, 8, 9, 8, dtype=torch.float64)).train()
    penalty = kernel_penalty(block)
    paths = [path for path, _ in block.affine_parts()]
    block.eval().switch_to_deploy()
    kernels = {path: block.get_submodule(path).weight for path in paths}
    kernels |= {p: m.conv.weight for p, m in block.named_modules() if isinstance(m, ConvBlock)}
    assert kernels
    squares = sum(kernel.square().sum() for kernel in kernels.values())
    torch.testing.assert_close(penalty.detach(), squares / 2)


def test_the_identity_of_repvgg_is_part_of_the_kernel():
    """By hand: s3 W3 + s1 W1 + s0 I, and the gradient by the weight of the identity's norm."""
    model = network("repvgg")
    branches = model[0].branches

    def scale(norm):
        return norm.weight / (norm.running_var + norm.eps).sqrt()

    kernel = branches.kxk.conv.weight * scale(branches.kxk.norm).view(-1, 1, 1, 1)
    centre = branches.pointwise.conv.weight[..., 0, 0] * scale(branches.pointwise.norm).view(-1, 1)
    centre = centre + torch.diag(scale(branches.identity.norm))
    kernel = kernel + nn.functional.pad(centre[..., None, None], [1, 1, 1, 1])
    expected = kernel.square().sum() / 2
    torch.testing.assert_close(kernel_penalty(model), expected)
    weight = branches.identity.norm.weight
    torch.testing.assert_close(
        torch.autograd.grad(kernel_penalty(model), weight)[0],
        torch.autograd.grad(expected, weight)[0],
    )


def test_penalised_kernels_are_not_decayed_twice():
    model = network("repvgg")
    names = penalised_names(model)
    assert "0.branches.identity.norm.weight" in names
    assert not any(name.startswith("1.") for name in names)
    optimizer = build_optimizer(model, OptimizerConfig(), 256, names)
    decayed = [g["params"] for g in optimizer.param_groups if g["weight_decay"] > 0]
    assert decayed == [[model[1].weight]]


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ConfigurationError, match=r"kernel_decay needs blocks that fold.*has none"):
        kernel_penalty(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_an_annealed_network_is_refused():
    with pytest.raises(
        ConfigurationError, match="VanillaBlock has one at the end of its annealing"
    ):
        penalised_names(nn.Sequential(STAGE_BLOCKS["vanilla"](8)))
