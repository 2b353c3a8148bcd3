"""What every stage block promises, over the registry."""

import copy

import pytest
import torch
from truth import calibrate, fitting, relative_error

from repblocks.algebra import is_batch_norm
from repblocks.blocks import STAGE_BLOCKS, anneal
from repblocks.errors import NotFoldable

pytestmark = [
    pytest.mark.parametrize("name", STAGE_BLOCKS),
    pytest.mark.parametrize("ndim", [1, 2, 3]),
]


def ready(name, ndim, **options):
    torch.manual_seed(0)
    made = STAGE_BLOCKS[name]
    # Several patches, where a block has patches, and none of them as high as it is wide.
    patch = fitting(made, *(4, 3, 5)[:ndim])
    block = made(11, ndim=ndim, **patch, **options).double()
    anneal(block, 1.0)
    return calibrate(block, image(ndim)), image(ndim)


def image(ndim):
    return torch.randn(2, 11, *(8 + i for i in range(ndim)), dtype=torch.float64)


def test_both_forms_are_one_function(name, ndim):
    block, x = ready(name, ndim)
    truth = block(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < 1e-12
    assert not any(map(is_batch_norm, block.modules()))
    before = copy.deepcopy(block.state_dict())
    block.switch_to_deploy()
    assert all(torch.equal(before[key], value) for key, value in block.state_dict().items())


def test_gradients_reach_every_parameter(name, ndim):
    block, x = ready(name, ndim)
    block.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_training_mode_is_refused(name, ndim):
    block, _ = ready(name, ndim)
    with pytest.raises(NotFoldable, match=r"call \.eval"):
        block.train().switch_to_deploy()
