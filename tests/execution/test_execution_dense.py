"""Blocks of several dense kernels: what is nested in them follows from moments too."""

import pytest
import torch
from execution_runs import assert_same, block_of, distance, image, step
from torch import nn

from repblocks.branches import AveragePool, Pad
from repblocks.execution import dispatch

SHAPES = [
    (8, 8, 3),
    (8, 12, 3),
    (8, 8, (3, 5)),
    (8, 8, 3, 1, 2, 2),
    (8, 8, (1, 3)),
]
OPTIONS = {
    "dbb": [{}, {"groups": 4}, {"internal_channels": 16}, {"groups": 2, "internal_channels": 2}],
    "mobileone": [{}, {"groups": 4}],
}
CASES = [(name, shape, o) for name, options in OPTIONS.items() for shape in SHAPES for o in options]


@pytest.fixture
def runs(monkeypatch):
    """Return a list that grows by one for each block that is run by its dense windows."""
    found = []

    def run(parts, x):
        found.append(parts)
        return dense(parts, x)

    dense = dispatch.run_dense
    monkeypatch.setattr(dispatch, "run_dense", run)
    return found


@pytest.mark.parametrize(("name", "shape", "options"), CASES, ids=str)
def test_all_branches_are_one_kernel(name, shape, options, runs):
    block, x = block_of(name, *shape, **options), image(9, 8, 11, 9) + 1
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))
    (parts,) = runs
    assert len(parts.merged) == len(block.branches)


@pytest.mark.parametrize("name", OPTIONS)
def test_channels_last(name, runs):
    block, x = block_of(name, 8, 8, 3), image(9, 8, 9, 9)
    truth = step(block, x, "branchwise")
    last = {"memory_format": torch.channels_last}
    assert_same(step(block.to(**last), x.to(**last), "merged"), truth)
    assert len(runs) == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [16, 21])
def test_a_batch_of_one_image(size, layout, runs):
    layout = {"memory_format": layout}
    block, x = block_of("dbb", 8, 8, 3).to(**layout), image(1, 8, size, size).to(**layout)
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))
    assert len(runs) == 1


@pytest.mark.parametrize("size", [3, 4, 5])
def test_images_that_are_all_border(size, runs):
    block, x = block_of("dbb", 8, 8, 3), image(32, 8, size, size) + 3
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"), 1e-11)
    assert len(runs) == 1


def test_a_depthwise_block_with_something_nested(runs):
    block, x = block_of("dbb", 8, 8, 3, groups=8), image(3, 8, 9, 9)
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))
    assert len(runs) == 1


def test_the_rest_of_a_block_runs_as_it_is(runs):
    block, x = block_of("dbb", 8, 8, 3), image(9, 8, 9, 9)
    block.branches["bare"] = nn.Conv2d(8, 8, 3, padding=1).double()
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))
    assert len(runs[0].others) == 1


@pytest.mark.parametrize(
    ("shape", "options"),
    [((8, 8, 3, 2), {}), ((8, 8, 3, 1, 0), {}), ((8, 8, 7), {}), ((8, 8, 3), {"groups": 8})],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:execution=merged runs branchwise")
def test_other_windows_do_not_qualify(shape, options, runs):
    block, x = block_of("mobileone", *shape, **options), image(9, 8, 19, 19)
    step(block, x, "merged")
    assert not runs


def test_few_positions_do_not_pay_for_the_covariance(runs):
    step(block_of("dbb", 8, 8, 3), image(1, 8, 9, 9), "merged")
    assert not runs


def test_an_average_of_the_input_beside_dense_kernels(runs):
    block, x = block_of("dbb", 8, 8, 3), image(9, 8, 9, 9)
    pool = [Pad(((1, 1), (1, 1))), AveragePool((3, 3), (1, 1), (1, 1))]
    block.branches["average"] = nn.Sequential(*pool, nn.BatchNorm2d(8).double())
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))
    assert len(runs[0].merged) == 5


@pytest.mark.parametrize("ratio", [0, 10, 100, 1000])
def test_input_far_from_zero_in_float64(ratio, runs):
    block, x = block_of("dbb", 8, 8, 3, activation=None), image(9, 8, 9, 9) + ratio
    found, truth = step(block, x, "merged"), step(block, x, "branchwise")
    exact = 1e-12 * max(ratio, 1)
    assert distance(found.output, truth.output) < exact
    assert distance(found.of_input, truth.of_input) < exact
    assert len(runs) == 1
