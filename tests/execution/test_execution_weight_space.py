"""Blocks whose branches have no norms of their own: what each execution runs."""

import pytest
import torch
from execution_runs import assert_same, block_of, image, step
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

NORMED_AFTER = [
    ("orepa", {}),
    ("do_conv", {}),
    ("expand_conv", {}),
    ("conv3xc", {}),
    ("ecb", {}),
    ("repvgg", {"post_norm": True}),
    ("acb", {"post_norm": True}),
    ("mobileone", {"post_norm": True}),
    ("qarepvgg", {"version": 1}),
    ("qarepvgg", {"version": 2}),
]
ONE_KERNEL = NORMED_AFTER[:-2]


def layers_run(block, x, execution):
    """Return the kinds of layers that a step calls."""
    called = []
    hook = register_module_forward_hook(lambda module, *_: called.append(type(module)))
    try:
        step(block, x, execution)
    finally:
        hook.remove()
    return called


@pytest.mark.parametrize(("name", "options"), NORMED_AFTER)
@pytest.mark.filterwarnings("ignore:execution=.* runs branchwise")
def test_all_executions_are_one_step(name, options):
    block, x = block_of(name, 8, 8, 3, **options), image(3, 8, 9, 9)
    truth = step(block, x, "branchwise")
    for execution in ("merged", "weight_space", "auto"):
        assert_same(step(block, x, execution), truth)


@pytest.mark.parametrize(("name", "options"), ONE_KERNEL)
def test_only_the_norm_of_the_sum_runs_as_a_layer(name, options, recwarn):
    block, x = block_of(name, 8, 8, 3, **options), image(3, 8, 19, 19)
    for execution in ("merged", "weight_space", "auto"):
        called = layers_run(block, x, execution)
        assert nn.Conv2d not in called
        assert nn.BatchNorm2d in called
    assert nn.Conv2d in layers_run(block, x, "branchwise")
    assert not recwarn.list


def test_branches_with_their_own_norms_merge_before_that_of_the_sum():
    block, x = block_of("qarepvgg", 8, 8, 1, version=1), image(3, 8, 9, 9)
    assert layers_run(block, x, "merged").count(nn.BatchNorm2d) == 1


def test_a_series_before_the_norm_of_the_sum():
    block, x = block_of("repvgg", 8, 8, 3, post_norm=True), image(3, 8, 9, 9)
    branches = block.branches
    block.branches = nn.Sequential(branches.sum, nn.Conv2d(8, 8, 1).double(), branches.norm)
    assert_same(step(block, x, "weight_space"), step(block, x, "branchwise"))
    assert nn.Conv2d not in layers_run(block, x, "weight_space")


def test_autocast_is_as_exact_as_the_branches():
    block, x = block_of("orepa", 8, 8, 3).float(), image(4, 8, 19, 19).float()
    truth = block.double()(x.double()).detach()
    block.float()
    with torch.autocast("cpu", torch.bfloat16):
        errors = [
            (_output(block, x, execution) - truth).square().mean().sqrt()
            for execution in ("weight_space", "branchwise")
        ]
    assert errors[0] < 1.5 * errors[1]


def _output(block, x, execution):
    block.execution = execution
    return block(x).detach().double()
