"""A large kernel beside a small one, against plain torch and timm's block of FastViT."""

import pytest
import torch
from timm.models.fastvit import ReparamLargeKernelConv
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError

EXACT = 1e-12


def image(channels=4, size=33):
    return torch.randn(2, channels, size, size + 1, dtype=torch.float64)


def ready(*shape, x=None, **options):
    torch.manual_seed(0)
    block = create_block("large_kernel", *shape, **options).double()
    return calibrate(block, image(shape[0]) if x is None else x)


def normed(x, norm):
    moments = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return functional.batch_norm(x, *moments, eps=norm.eps)


@pytest.mark.parametrize(("large", "small"), [(31, 5), (29, 5), (27, 5), (13, 5), (7, 3)])
def test_it_is_the_sum_of_both_kernels(large, small):
    block, x = ready(4, 4, large, groups=4, small_kernel=small), image()
    with torch.no_grad():
        truth = torch.zeros((), dtype=torch.float64)
        for branch, size in zip(block.branches.values(), (large, small), strict=True):
            conv = functional.conv2d(x, branch.conv.weight, padding=size // 2, groups=4)
            truth = truth + normed(conv, branch.norm)
        truth = functional.relu(truth)
        assert relative_error(block(x), truth) < EXACT
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT
    assert block.conv.padding == (large // 2, large // 2)


@pytest.mark.parametrize(
    ("channels", "stride", "small", "se"),
    [((4, 8), 2, 3, None), ((4, 4), 1, 3, None), ((4, 4), 1, 5, None), ((32, 32), 1, 3, 0.25)],
)
def test_it_is_the_block_of_timm(channels, stride, small, se):
    """Its weights in ours give the same output in both forms."""
    x = image(channels[0], 11)
    groups = channels[0]
    ours = ready(
        *channels, 7, stride, x=x, groups=groups, small_kernel=small, activation=None, se=se
    )
    theirs = ReparamLargeKernelConv(*channels, 7, stride, 1, small, use_se=se is not None)
    state = {
        key.replace("large", "large_conv").replace("small", "small_conv").replace("norm", "bn"): v
        for key, v in ours.branches.state_dict().items()
    }
    if se is not None:
        names = {"reduce": "fc1", "expand": "fc2"}
        for key, value in ours.tail.se.state_dict().items():
            layer, _, rest = key.partition(".")
            state[f"se.{names[layer]}.{rest}"] = value
    theirs.double().eval().load_state_dict(state)
    with torch.no_grad():
        truth = theirs(x)
        assert relative_error(ours(x), truth) < 1e-10
        kernel, (weight, bias) = ours.equivalent_kernel(), theirs.get_kernel_bias()
        assert relative_error(kernel.weight, weight) < 1e-10
        assert relative_error(kernel.bias, bias) < 1e-10
        ours.switch_to_deploy()
        assert relative_error(ours(x), truth) < 1e-10


@pytest.mark.parametrize(
    ("kernel_size", "small", "expected"),
    [
        (7, None, None),
        (7, 7, (5, 5)),
        (5, 5, (3, 3)),
        (3, 5, (1, 1)),
        (1, 5, None),
        ((9, 3), 5, (5, 1)),
        ((9, 1), 5, (5, 1)),
    ],
)
def test_the_small_kernel_is_smaller_or_left_out(kernel_size, small, expected):
    branches = create_block("large_kernel", 4, 4, kernel_size, small_kernel=small).branches
    found = branches["small"].conv.kernel_size if "small" in branches else None
    assert found == expected


def test_even_kernels_lie_in_even_ones():
    x = image()
    block = ready(4, 4, 8, padding=3, small_kernel=4)
    truth = block(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < EXACT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small_kernel": 4}, r"both be odd or both be even.*got 4 and \(7, 7\)"),
        ({"small_kernel": 0}, "small_kernel must be a whole number of at least 1, got 0"),
        ({"small_kernel": 3.0}, r"small_kernel must be a whole number of at least 1, got 3\.0"),
        ({"small_kernel": True}, "small_kernel must be a whole number of at least 1, got True"),
    ],
)
def test_what_has_no_common_centre_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        create_block("large_kernel", 4, 4, 7, **options)
