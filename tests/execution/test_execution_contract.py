"""Every block under every execution: one function, with the same statistics and gradients."""

import pytest
import torch
from execution_runs import assert_same, block_of, image, step

from repblocks.blocks import CONV_BLOCKS
from repblocks.errors import ConfigurationError
from repblocks.execution import EXECUTIONS

SHAPES = [
    {},
    {"out_channels": 12},
    {"stride": 2},
    {"stride": 2, "out_channels": 16, "groups": 4},
    {"groups": 2, "padding": 3},
    {"kernel_size": 1},
    {"kernel_size": 1, "groups": 2, "stride": 2},
    {"groups": 8},
    {"groups": 8, "stride": 2},
    {"groups": 8, "stride": 2, "kernel_size": 5},
    {"groups": 8, "kernel_size": 5},
    {"groups": 8, "dilation": 2},
    {"groups": 8, "padding": 0},
    {"groups": 8, "padding": 3},
    {"groups": 8, "kernel_size": (3, 5), "padding": (0, 3), "dilation": (2, 1)},
    {"groups": 8, "kernel_size": 9},
    {"groups": 8, "out_channels": 16},
    {"se": 0.25, "activation": "gelu"},
]
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}

pytestmark = pytest.mark.parametrize("name", CONV_BLOCKS)


def built(name, ndim, shape):
    arguments = {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "ndim": ndim, **shape}
    if ndim != 2:
        arguments = {key: v[0] if isinstance(v, tuple) else v for key, v in arguments.items()}
    return block_of(name, **arguments)


def inputs(ndim, size=None):
    return image(3, 8, *((size or {1: 19, 2: 9, 3: 7}[ndim]) + i for i in range(ndim)))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.filterwarnings("ignore:execution=merged runs branchwise")
def test_merged_and_branchwise_are_one_step(name, shape, ndim):
    block, x = built(name, ndim, shape), inputs(ndim)
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("shape", [{}, {"stride": 2}, {"groups": 8}, {"kernel_size": 1}], ids=str)
@pytest.mark.filterwarnings("ignore:execution=merged runs branchwise")
def test_the_memory_layout_does_not_matter(name, shape, ndim):
    block, x = built(name, ndim, shape), inputs(ndim)
    truth = step(block, x, "branchwise")
    layout = {"memory_format": LAYOUTS[ndim]}
    assert_same(step(block.to(**layout), x.to(**layout), "merged"), truth)


@pytest.mark.parametrize("shape", [{}, {"groups": 8}, {"groups": 8, "kernel_size": 5}], ids=str)
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.filterwarnings("ignore:execution=merged runs branchwise")
def test_images_that_are_all_border(name, shape, size):
    block, x = built(name, 2, shape), inputs(2, size) + 3
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"), 1e-11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frozen_norms_run_in_weight_space(name, shape):
    block, x = built(name, 2, shape), inputs(2)
    block(x)
    block.branches.apply(lambda m: m.eval() if hasattr(m, "running_mean") else m)
    truth = step(block, x, "branchwise")
    for execution in ("weight_space", "merged"):
        assert_same(step(block, x, execution), truth)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_evaluation_runs_the_branches(name, execution, monkeypatch):
    block, x = built(name, 2, {}).eval(), inputs(2)
    monkeypatch.setattr("repblocks.execution.dispatch._together", None)
    block.execution = execution
    assert torch.equal(block(x), block.tail(block.branches(x)))


def test_an_unknown_execution_is_refused(name):
    with pytest.raises(ConfigurationError, match="auto, branchwise, merged, .*, got 'fast'"):
        block_of(name, 8, 8, 3, execution="fast")


@pytest.mark.filterwarnings("ignore:execution=merged runs branchwise")
def test_a_single_value_is_refused(name):
    block = built(name, 2, {"kernel_size": 1})
    for execution in ("branchwise", "merged", "auto"):
        with pytest.raises(ValueError, match="more than (1|one) value"):
            step(block, image(1, 8, 1, 1), execution)
