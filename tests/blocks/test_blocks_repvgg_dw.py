"""RepViT's depthwise block against plain torch and timm's."""

import pytest
import torch
from timm.models.repvit import RepVggDw
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.algebra import is_batch_norm
from repblocks.blocks import create_block
from repblocks.errors import ConfigurationError

EXACT = 1e-12


def image(channels=6):
    return torch.randn(2, channels, 9, 10, dtype=torch.float64)


def ready(*shape, **options):
    torch.manual_seed(0)
    block = create_block("repvgg_dw", *shape, **options).double()
    return calibrate(block, image(shape[0]))


def normed(x, norm):
    moments = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return functional.batch_norm(x, *moments, eps=norm.eps)


def in_timms_names(block, legacy):
    names = {"kxk.conv": "conv.c", "kxk.norm": "conv.bn", "norm": "bn"}
    names |= {"pointwise.conv": "conv1.c" if legacy else "conv1", "pointwise.norm": "conv1.bn"}
    state = {}
    for key, value in block.branches.state_dict().items():
        module, _, tensor = key.removeprefix("sum.").rpartition(".")
        state[f"{names[module]}.{tensor}"] = value
    return state


@pytest.mark.parametrize("legacy", [False, True])
def test_it_is_the_block_of_timm(legacy):
    """Its weights in ours give the same output and the same kernel, borders included."""
    ours, theirs = ready(6, 6, 3, groups=6, activation=None, legacy=legacy), RepVggDw(6, 3, legacy)
    theirs.double().eval().load_state_dict(in_timms_names(ours, legacy))
    x = image()
    with torch.no_grad():
        truth = theirs(x)
        assert relative_error(ours(x), truth) < 1e-10
        kernel, folded = ours.equivalent_kernel(), theirs.fuse()
        # timm folds into a convolution of float32.
        assert relative_error(folded.weight.double(), kernel.weight) < 1e-6
        assert relative_error(folded.bias.double(), kernel.bias) < 1e-6
        ours.switch_to_deploy()
        assert relative_error(ours(x), truth) < 1e-10
        assert relative_error(ours(x)[:, :, 0], truth[:, :, 0]) < 1e-10


@pytest.mark.parametrize(("shape", "groups"), [((6, 6, 3), 6), ((6, 9, 3, 2), 3), ((6, 6, 5), 1)])
def test_it_is_the_formula(shape, groups):
    block, x = ready(*shape, groups=groups), image()
    kxk, pointwise = block.branches.sum["kxk"], block.branches.sum["pointwise"]
    stride, side = block.shape.stride, shape[2] // 2
    with torch.no_grad():
        wide = functional.conv2d(x, kxk.conv.weight, None, stride, side, 1, groups)
        narrow = functional.conv2d(
            x, pointwise.conv.weight, pointwise.conv.bias, stride, 0, 1, groups
        )
        total = normed(wide, kxk.norm) + narrow + (x if len(shape) == 3 else 0)
        truth = functional.relu(normed(total, block.branches.norm))
        assert relative_error(block(x), truth) < EXACT
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT


@pytest.mark.parametrize(("legacy", "expected"), [(False, 2), (True, 2)])
def test_each_version_has_its_norms_and_bias(legacy, expected):
    block = create_block("repvgg_dw", 6, 6, 3, groups=6, legacy=legacy)
    assert sum(map(is_batch_norm, block.branches.modules())) == expected
    biases = [name for name, p in block.branches.named_parameters() if "conv.bias" in name]
    assert biases == ([] if legacy else ["sum.pointwise.conv.bias"])


def test_the_bias_of_the_small_kernel_reaches_the_padded_border():
    """Padding of 3 puts outputs where neither the 1 x 1 nor the identity reads the image."""
    block, x = ready(6, 6, 3, padding=3, groups=6), image()
    truth = block(x)
    block.switch_to_deploy()
    assert relative_error(block(x)[:, :, 0], truth[:, :, 0]) < EXACT


def test_another_value_than_a_truth_value_is_refused():
    with pytest.raises(ConfigurationError, match="legacy must be true or false, got 1"):
        create_block("repvgg_dw", 6, 6, 3, legacy=1)
