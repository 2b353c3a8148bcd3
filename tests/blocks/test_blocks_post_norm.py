"""One BatchNorm after the sum, in the place of one in each branch."""

import pytest
import torch
from torch.nn import functional
from truth import calibrate, relative_error, rms_error

from repblocks import expand, fold
from repblocks.algebra import is_batch_norm
from repblocks.blocks import CONV_BLOCKS, create_block
from repblocks.branches import BatchNormPad
from repblocks.errors import ConfigurationError

BLOCKS = [name for name, cls in CONV_BLOCKS.items() if "post_norm" in cls.__signature__.parameters]
SHAPES = [
    {},
    {"out_channels": 9, "stride": 2, "groups": 3},
    {"dilation": 2, "groups": 6, "padding": 1},
    {"kernel_size": 5, "padding": 0},
    {"kernel_size": 1},
]

blocks = pytest.mark.parametrize("name", BLOCKS)


def image(ndim=2):
    return torch.randn(2, 6, *(9 + i for i in range(ndim)), dtype=torch.float64)


def ready(name, ndim=2, **shape):
    torch.manual_seed(0)
    arguments = {"in_channels": 6, "out_channels": 6, "kernel_size": 3, **shape}
    block = create_block(name, **arguments, ndim=ndim, post_norm=True).double()
    return calibrate(block, image(ndim))


def test_the_blocks_of_normed_branches_have_it():
    assert {"repvgg", "mobileone", "acb", "dbb"} <= set(BLOCKS)


@blocks
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_forms_are_one_function(name, shape, ndim):
    block, x = ready(name, ndim, **shape), image(ndim)
    inside = [m.norm for m in block.modules() if isinstance(m, BatchNormPad)]
    norms = [m for m in block.branches.modules() if is_batch_norm(m) and m not in inside]
    assert norms == [block.branches.norm]
    with torch.no_grad():
        truth = block(x)
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < 1e-12


@blocks
def test_the_norm_acts_on_the_sum_of_all_branches(name):
    block, x = ready(name), image()
    total = sum(branch(x) for branch in block.branches.sum.values())
    norm = block.branches.norm
    moments = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    expected = functional.batch_norm(total, *moments, eps=norm.eps)
    assert relative_error(block.branches(x), expected) < 1e-12
    assert "norm" not in [n for b in block.branches.sum.values() for n, _ in b.named_children()]


@blocks
@pytest.mark.filterwarnings("ignore:execution=merged runs branchwise")
def test_every_parameter_is_trained_under_every_execution(name):
    block = ready(name).train()
    for execution in ("branchwise", "merged", "auto"):
        block.zero_grad()
        block.execution = execution
        block(image()).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@blocks
def test_a_convolution_expands_to_it_and_back(name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(6, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU()
    )
    x = image()
    calibrate(model.double(), x)
    expanded = expand(model, name, [x], post_norm=True)
    with torch.no_grad():
        assert relative_error(expanded(x), model(x)) < 1e-12
        assert relative_error(fold(expanded, x)(x), model(x)) < 1e-10
        assert rms_error(expanded.train()(x), model.train()(x)) < 0.5


@blocks
def test_another_value_than_a_truth_value_is_refused(name):
    with pytest.raises(ConfigurationError, match="post_norm must be true or false, got 'yes'"):
        create_block(name, 6, 6, 3, post_norm="yes")
