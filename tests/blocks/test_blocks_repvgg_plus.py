"""RepVGGplus: activation, then squeeze-and-excitation, which stays when the block is deployed."""

import inspect

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from truth import calibrate, relative_error

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks import expand, swap
from repblocks.blocks import CONV_BLOCKS, ConvBlock, RepNeXtBlock, create_block
from repblocks.errors import ConfigurationError

EXACT = 1e-12


def image(channels=8):
    return torch.randn(2, channels, 9, 12, dtype=torch.float64)


def ready(*shape, **options):
    torch.manual_seed(0)
    return calibrate(create_block("repvgg_plus", *shape, **options).double(), image())


def gated(x, se):
    """The gate of each channel, from the mean of its image, of any size."""
    hidden = functional.relu(
        functional.conv2d(x.mean((2, 3), True), se.reduce.weight, se.reduce.bias)
    )
    return x * functional.conv2d(hidden, se.expand.weight, se.expand.bias).sigmoid()


def test_the_activation_comes_first_in_both_forms():
    block, x = ready(8, 8, 3), image()
    se = block.tail.se
    assert se.reduce.out_channels == 2
    with torch.no_grad():
        truth = gated(functional.relu(block.branches(x)), se)
        assert relative_error(block(x), truth) < EXACT
        before = {key: value for key, value in block.state_dict().items() if "tail" in key}
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT
    left = block.state_dict()
    assert set(left) == {"conv.weight", "conv.bias", *before}
    assert all(torch.equal(left[key], value) for key, value in before.items())


def test_the_branches_are_those_of_repvgg():
    plus, plain = ready(8, 8, 3, se=None), create_block("repvgg", 8, 8, 3).double()
    plain.load_state_dict(plus.state_dict())
    x = image()
    assert torch.equal(plus(x), plain.eval()(x))
    assert plus.decayed_parameters() == plain.decayed_parameters() != ()


def test_it_is_the_block_of_timm_with_the_same_attention_behind_the_activation():
    from timm.models.byobnet import RepVggBlock

    ours, theirs = ready(8, 8, 3), RepVggBlock(8, 8, 3).double().eval()
    names = {"kxk": "conv_kxk", "pointwise": "conv_1x1", "identity": "identity"}
    state = {}
    for key, value in ours.branches.state_dict().items():
        branch, _, rest = key.partition(".")
        rest = rest.removeprefix("norm.") if branch == "identity" else rest.replace("norm", "bn")
        state[f"{names[branch]}.{rest}"] = value
    theirs.load_state_dict(state)
    x = image()
    with torch.no_grad():
        assert relative_error(ours(x), gated(theirs(x), ours.tail.se)) < 1e-10


def test_defaults_stand_in_the_signature():
    signatures = {name: inspect.signature(cls).parameters for name, cls in CONV_BLOCKS.items()}
    assert signatures["repvgg_plus"]["se"].default == 0.25
    assert signatures["repvgg"]["se"].default is None
    assert signatures["repvgg"]["activation"].default == "relu"


def test_too_few_channels_for_a_quarter_are_refused():
    with pytest.raises(ConfigurationError, match="0.25 of 3 channels is less than one"):
        create_block("repvgg_plus", 8, 3, 3)
    assert len(create_block("repvgg_plus", 8, 3, 3, se=None).tail) == 1


def test_a_network_leaves_it_to_the_block():
    model = timm.create_model("repblocks_repvgg_tiny", block="repvgg_plus")
    tails = [[*m.tail._modules] for m in model.modules() if isinstance(m, ConvBlock)]
    assert tails == [["act", "se"]] * 6


@pytest.mark.parametrize("deploy", [False, True])
def test_the_network_has_it_everywhere(deploy):
    shape = {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8), "stem_width": 8, "auxiliary": False}
    model = timm.create_model("repblocks_repvgg_l2pse", deploy=deploy, **shape)
    blocks = [m for m in model.modules() if isinstance(m, ConvBlock)]
    assert {type(m) for m in blocks} == {CONV_BLOCKS["repvgg_plus"]}
    assert [m.tail.se.reduce.out_channels for m in blocks] == [2] * 5
    own = timm.create_model("repblocks_repvgg_l2pse", block=None, **shape)
    assert {type(m) for m in own.modules() if isinstance(m, ConvBlock)} == {type(blocks[0])}


def test_what_keeps_a_function_or_a_place_brings_no_attention():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)).double()
    calibrate(model, image())
    for changed in (expand(model, "repvgg_plus", [image()]), swap(model, "repvgg_plus")):
        assert len(changed[0].tail) == 0
    assert len(swap(model, "repvgg_plus", se=0.25)[0].tail) == 1
    block = calibrate(RepNeXtBlock(8, block="repvgg_plus").double(), image())
    x = image()
    truth = block(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < EXACT
