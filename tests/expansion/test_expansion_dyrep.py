"""Growing and cutting branches: the same function, and what a state dict tells of it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.blocks import CONV_BLOCKS, create_block
from repblocks.errors import ConfigurationError, NotFoldable, UnknownNameError
from repblocks.expansion import cut_, grow_, match_branches_, saliency, weak_branches
from repblocks.expansion.dyrep import GROWN

ADDED = [name.replace(".", "__") for name in GROWN]
#: Those whose branches are a sum, or one convolution with BatchNorm.
GROWING = ["plain", "repvgg", "acb", "dbb", "mobileone", "repconv", "large_kernel", "qarepvgg"]
EXACT = 1e-12


def image(ndim=2, count=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    sizes = [7 + i for i in range(ndim)]
    return torch.randn(count, 8, *sizes, generator=generator, dtype=torch.float64)


def ready(name="plain", ndim=2, **options):
    torch.manual_seed(0)
    arguments = {"kernel_size": 3, "ndim": ndim, "groups": 1, **options}
    return calibrate(create_block(name, 8, 8, **arguments).double(), image(ndim))


def branches(block):
    tree = block.branches
    return list(tree if isinstance(tree, nn.ModuleDict) else tree[0])


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("shape", [{}, {"groups": 8}, {"stride": 2, "groups": 2}], ids=str)
def test_growing_and_cutting_keep_the_function(name, ndim, shape):
    block = ready(name, ndim, **shape)
    before, truth = branches(block) if name != "plain" else ["main"], block(image(ndim))
    added = grow_(block, branches=GROWN[:5])
    assert len(added) >= 3 if ndim > 1 else len(added) >= 2
    assert branches(block) == [*before, *added]
    assert relative_error(block(image(ndim)), truth) < EXACT
    kernel = block.equivalent_kernel()
    cut_(block, added[1:])
    assert branches(block) == [*before, added[0]]
    assert relative_error(block(image(ndim)), truth) < EXACT
    assert block.equivalent_kernel().weight.shape == kernel.weight.shape
    block.switch_to_deploy()
    assert relative_error(block(image(ndim)), truth) < EXACT


def test_data_makes_training_the_same_function():
    torch.manual_seed(0)
    net = nn.Sequential(create_block("plain", 8, 8, 3), create_block("repvgg", 8, 8, 3))
    net = calibrate(net.double(), image(count=64))
    x = image(count=64)
    blind, told = copy.deepcopy(net), copy.deepcopy(net)
    truth = net(x)
    for model, data in ((blind, ()), (told, [x])):
        assert grow_(model, "0", data=data) == tuple(ADDED)
        assert relative_error(model(x), truth) < EXACT
    # The first block normalises by the statistics of this batch where it was told them.
    errors = [(model[0].train()(x) - net[0](x)).norm().item() for model in (blind, told)]
    assert errors[1] < 0.2 * errors[0]


def test_what_the_shape_does_not_allow_is_left_out():
    assert grow_(ready(stride=2)) == tuple(ADDED[:5])
    assert grow_(ready(groups=8)) == tuple(ADDED[1:])
    block = ready()
    assert grow_(block) == tuple(ADDED)
    assert grow_(block) == ()
    assert grow_(ready("qarepvgg"), branches=["repvgg.identity"]) == ()


def test_new_branches_are_like_the_block():
    block = ready().float().to(memory_format=torch.channels_last).train().requires_grad_(False)
    grow_(block)
    assert {p.dtype for p in block.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in block.parameters())
    assert all(module.training for module in block.modules())
    kernel = block.branches["dbb__pointwise_kxk"].kxk.conv.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_weak_branches_are_those_of_small_scales():
    block = ready("repvgg")
    truth = block(image())
    grow_(block, data=[image()])
    assert weak_branches(block) == []
    with torch.no_grad():
        for name in ("pointwise", "acb__skeleton1"):
            block.branches[name].norm.weight.fill_(1e-3)
        truth = block(image())
    assert weak_branches(block) == ["pointwise", "acb__skeleton1"]
    assert weak_branches(block, grown=True) == ["acb__skeleton1"]
    assert weak_branches(block, 1e-4) == []
    cut_(block, weak_branches(block))
    assert relative_error(block(image()), truth) < EXACT


def test_the_main_branch_stays():
    block = ready()
    grow_(block)
    with torch.no_grad():
        block.branches["main"].norm.weight.mul_(1e-6)
    assert weak_branches(block) == []
    with pytest.raises(ConfigurationError, match=r"must be some of dbb__pointwise,.*got main"):
        cut_(block, ["main"])


def test_a_score_is_of_absolute_values():
    """The loss does not depend on the scale of a weight before a BatchNorm."""
    block = ready().train()
    loss = functional.mse_loss(block(image()), image(seed=5))
    loss.backward()
    (weight,) = (p for p in block.parameters() if p.ndim > 2)
    score = saliency(block).item()
    assert abs((weight * weight.grad).sum().item()) < 1e-3 * score
    assert score == pytest.approx((weight * weight.grad).abs().sum().item())
    assert saliency(ready()).item() == 0


@pytest.mark.parametrize("name", ["plain", "repvgg", "qarepvgg"])
def test_a_state_dict_tells_what_was_grown(name):
    torch.manual_seed(0)
    net = nn.Sequential(create_block(name, 8, 8, 3), create_block(name, 8, 8, 3)).double()
    net = calibrate(net, image())
    fresh = copy.deepcopy(net)
    start = copy.deepcopy(net.state_dict())
    grow_(net, "1")
    cut_(net[1], ["acb__skeleton0"])
    grow_(net, "1", ["acb.skeleton0"])
    state = net.state_dict()
    match_branches_(fresh, state)
    assert list(fresh.state_dict()) == list(state)
    fresh.load_state_dict(state)
    assert relative_error(fresh(image()), net(image())) < EXACT
    match_branches_(net, start)
    assert list(net.state_dict()) == list(start)


def test_blocks_that_cannot_take_a_remainder_are_left_as_they_are():
    block = ready("expand_conv")
    before = list(block.state_dict())
    with pytest.raises(NotFoldable, match="has no branch of one convolution"):
        grow_(block)
    assert list(block.state_dict()) == before
    zero = ready()
    nn.init.zeros_(next(m for m in zero.modules() if isinstance(m, nn.BatchNorm2d)).weight)
    before = list(zero.state_dict())
    with pytest.raises(NotFoldable, match="main branch of PlainBlock scales a channel by 0"):
        grow_(zero)
    assert list(zero.state_dict()) == before


def test_wrong_arguments_are_refused():
    block = ready()
    with pytest.raises(UnknownNameError, match="Unknown conv block 'dbc'. Did you mean 'dbb'"):
        grow_(block, branches=["dbc.pointwise"])
    for name in ("plain.conv", "dbb"):
        with pytest.raises(ConfigurationError, match=f"whose branches are a sum.*got '{name}'"):
            grow_(block, branches=[name])
    with pytest.raises(ConfigurationError, match="must be a conv block to grow, got ReLU"):
        grow_(nn.Sequential(nn.ReLU()), "0")
    with pytest.raises(ConfigurationError, match=r"threshold must be from 0 to 1, got 1\.5"):
        weak_branches(block, 1.5)
    block.switch_to_deploy()
    with pytest.raises(ConfigurationError, match="is in deployed form, without branches"):
        grow_(block)
    assert set(GROWING) <= set(CONV_BLOCKS)
