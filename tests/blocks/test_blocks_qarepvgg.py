"""QARepVGG against plain torch: which branches have a norm, and the norm of the sum."""

import pytest
import torch
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.algebra import is_batch_norm
from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError

EXACT = 1e-12


def ready(*shape, **options):
    torch.manual_seed(0)
    block = create_block("qarepvgg", *shape, **options).double()
    return calibrate(block, torch.randn(2, shape[0], 9, 10, dtype=torch.float64))


def normed(x, norm):
    moments = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return functional.batch_norm(x, *moments, eps=norm.eps)


def by_hand(block, x):
    """Compute what the official forward computes, for kernel size 3 and padding 1."""
    branches, shape = block.branches.sum, block.shape
    arguments = {"stride": shape.stride, "groups": shape.groups}
    kxk, pointwise = branches["kxk"], branches["pointwise"]
    total = normed(functional.conv2d(x, kxk.conv.weight, padding=1, **arguments), kxk.norm)
    narrow = functional.conv2d(x, pointwise.conv.weight, **arguments)
    parts = dict(pointwise.named_children())
    total = total + (normed(narrow, parts["norm"]) if "norm" in parts else narrow)
    if "identity" in branches:
        norms = [m for m in branches["identity"].modules() if is_batch_norm(m)]
        total = total + (normed(x, norms[0]) if norms else x)
    if "average" in branches:
        total = total + functional.avg_pool2d(x, 3, 1, 1)
    return functional.relu(normed(total, block.branches.norm))


@pytest.mark.parametrize("options", [{"version": 1}, {"version": 2}, {"use_average": True}])
@pytest.mark.parametrize("shape", [(6, 6, 3), (6, 9, 3, 2)])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_the_formula_of_the_paper(options, shape, groups):
    block = ready(*shape, groups=groups, **options)
    x = torch.randn(2, 6, 8, 11, dtype=torch.float64)
    with torch.no_grad():
        truth = by_hand(block, x)
        assert relative_error(block(x), truth) < EXACT
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT
        assert block.conv.groups == groups


@pytest.mark.parametrize(
    ("version", "expected"),
    [(1, ["kxk", "pointwise", "identity", "norm"]), (2, ["kxk", "norm"])],
)
def test_the_version_says_which_branches_have_a_norm(version, expected):
    block = create_block("qarepvgg", 6, 6, 3, version=version)
    found = [
        name.removeprefix("sum.").split(".")[0]
        for name, module in block.branches.named_modules()
        if is_batch_norm(module)
    ]
    assert found == expected
    assert block.decayed_parameters() == (
        ("branches.sum.identity.norm.weight",) if version == 1 else ()
    )


def test_the_kernel_is_that_of_the_sum_scaled_by_its_norm():
    block = ready(6, 6, 3, groups=2)
    kernel, branches, norm = block.equivalent_kernel(), block.branches.sum, block.branches.norm
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)
    own = branches["kxk"].norm
    dense = branches["kxk"].conv.weight * (own.weight / (own.running_var + own.eps).sqrt()).view(
        -1, 1, 1, 1
    )
    centre = branches["pointwise"].conv.weight[:, :, 0, 0] + torch.eye(3).repeat(2, 1)
    dense = dense + functional.pad(centre[:, :, None, None], [1, 1, 1, 1])
    assert relative_error(kernel.weight, scale * dense) < EXACT


def test_the_norm_stands_before_squeeze_and_excitation_so_that_it_folds():
    block = ready(8, 8, 3, se=0.5)
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        truth = functional.relu(block.tail.se(block.branches(x)))
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"version": 3}, r"version must be 1 .* or 2 .*, got 3"),
        ({"version": True}, "version must be 1 .*, got True"),
        ({"use_average": 1}, "use_average must be true or false, got 1"),
    ],
)
def test_options_out_of_range_are_refused(option, message):
    with pytest.raises(ConfigurationError, match=message):
        create_block("qarepvgg", 6, 6, 3, **option)
