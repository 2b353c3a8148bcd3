"""RepConv: RepVGG's branches without identity unless asked for, and SiLU."""

import inspect

import pytest
import torch
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.blocks import CONV_BLOCKS, create_block
from repblocks.errors import ConfigurationError

EXACT = 1e-12


def image(channels=6):
    return torch.randn(2, channels, 9, 10, dtype=torch.float64)


def ready(*shape, **options):
    torch.manual_seed(0)
    return calibrate(create_block("repconv", *shape, **options).double(), image())


def normed(x, norm):
    moments = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return functional.batch_norm(x, *moments, eps=norm.eps)


@pytest.mark.parametrize("use_identity", [False, True])
@pytest.mark.parametrize(("shape", "groups"), [((6, 6, 3), 3), ((6, 9, 3, 2), 1), ((6, 6, 3), 6)])
def test_it_is_the_formula(use_identity, shape, groups):
    block, x = ready(*shape, groups=groups, use_identity=use_identity), image()
    kxk, pointwise = block.branches["kxk"], block.branches["pointwise"]
    stride = block.shape.stride
    with torch.no_grad():
        wide = functional.conv2d(x, kxk.conv.weight, None, stride, 1, 1, groups)
        narrow = functional.conv2d(x, pointwise.conv.weight, None, stride, 0, 1, groups)
        truth = normed(wide, kxk.norm) + normed(narrow, pointwise.norm)
        if use_identity and shape == (6, 6, 3):
            truth = truth + normed(x, block.branches["identity"].norm)
        truth = functional.silu(truth)
        assert relative_error(block(x), truth) < EXACT
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT
        assert block.conv.groups == groups


def test_the_identity_is_there_where_it_is_asked_for_and_the_shape_allows_it():
    def has_identity(*shape, **options):
        return "identity" in create_block("repconv", *shape, **options).branches

    assert not has_identity(6, 6, 3)
    assert has_identity(6, 6, 3, use_identity=True)
    assert not has_identity(6, 8, 3, use_identity=True)
    assert not has_identity(6, 6, 3, 2, use_identity=True)


def test_with_identity_and_relu_it_is_repvgg():
    ours, theirs = (
        ready(6, 6, 3, use_identity=True, activation="relu"),
        create_block("repvgg", 6, 6, 3),
    )
    theirs.double().eval().load_state_dict(ours.state_dict())
    x = image()
    assert torch.equal(ours(x), theirs(x))
    assert ours.decayed_parameters() == theirs.decayed_parameters() != ()


def test_the_activation_is_silu_unless_said_otherwise():
    assert inspect.signature(CONV_BLOCKS["repconv"]).parameters["activation"].default == "silu"
    assert isinstance(create_block("repconv", 6, 6, 3).tail.act, torch.nn.SiLU)
    assert len(create_block("repconv", 6, 6, 3, activation=None).tail) == 0


def test_another_value_than_a_truth_value_is_refused():
    with pytest.raises(ConfigurationError, match="use_identity must be true or false, got 'no'"):
        create_block("repconv", 6, 6, 3, use_identity="no")
