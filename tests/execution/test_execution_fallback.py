"""What cannot be merged runs branch by branch; who asked for more is told why."""

import gc
import warnings
import weakref
from types import MethodType

import pytest
import torch
from execution_runs import assert_same, block_of, image, step
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from repblocks.blocks import ConvBlock
from repblocks.branches import AveragePool, Pad, Sum
from repblocks.errors import ConfigurationError


def hook_forward(block):
    block.branches["kxk0"].conv.register_forward_hook(lambda _m, _x, y: 2 * y)


def hook_backward(block):
    block.branches["kxk1"].norm.register_full_backward_hook(lambda *_: None)


def average_all(block):
    block.branches["kxk0"].norm.momentum = None


def freeze_one(block):
    block.branches["identity"].norm.eval()


def other_norm(block):
    block.branches["kxk0"].norm = nn.GroupNorm(2, 8).double()


def own_forward(block):
    conv = block.branches["kxk0"].conv
    conv.forward = MethodType(lambda self, x: 2 * type(self).forward(self, x), conv)


def share_norm(block):
    block.branches["kxk0"].norm = block.branches["kxk1"].norm


def spectral(block):
    parametrizations.spectral_norm(block.branches["kxk0"].conv)


def stop_tracking(block):
    block.branches["kxk0"].norm.track_running_stats = False


def forget_batches(block):
    block.branches["kxk1"].norm.num_batches_tracked = None


def drop_one_bias(block):
    block.branches["kxk0"].norm.bias = None


OBSTACLES = {
    share_norm: "two branches share a BatchNorm",
    spectral: "ParametrizedConv2d has a parametrization with a state",
    stop_tracking: "a BatchNorm has no momentum or does not track its statistics",
    forget_batches: "a BatchNorm has no momentum or does not track its statistics",
    drop_one_bias: "some BatchNorms have a weight or bias and some have none",
    hook_forward: "Conv2d has hooks",
    hook_backward: "BatchNorm2d has backward hooks",
    average_all: "a BatchNorm has no momentum",
    freeze_one: "some BatchNorms are frozen and some are not",
    other_norm: "GroupNorm is not one of the known operations",
    own_forward: "Conv2d is not one of the known operations",
}


@pytest.mark.parametrize("change", OBSTACLES, ids=lambda change: change.__name__)
def test_what_cannot_be_merged_runs_the_branches(change):
    block, x = block_of("mobileone", 8, 8, 1), image(64, 8, 32, 32)
    block(x)
    change(block)
    truth = step(block, x, "branchwise")
    reason = f"execution=merged runs branchwise.*{OBSTACLES[change]}"
    with pytest.warns(UserWarning, match=reason):
        assert_same(step(block, x, "merged"), truth, 1e-15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(step(block, x, "auto"), truth, 1e-15)


def test_blocks_without_a_small_kernel_run_the_branches():
    block, x = block_of("plain", 8, 8, 3), image(2, 8, 9, 9)
    with pytest.warns(UserWarning, match="no branch is a pointwise or a small depthwise kernel"):
        step(block, x, "merged")
    with pytest.warns(UserWarning, match="a BatchNorm uses the statistics of each batch"):
        step(block, x, "weight_space")


def test_images_without_a_batch_are_left_to_the_branches():
    block, x = block_of("mobileone", 8, 8, 1), image(8, 8, 9)
    block.execution = "merged"
    block(image(2, 8, 9, 9))
    with (
        pytest.warns(UserWarning, match="the input has another number of axes than a kernel"),
        pytest.raises(ValueError, match="expected 4D input"),
    ):
        block(x)


def test_every_known_block_merges_what_it_can(recwarn):
    for name, shape in [("repvgg", {}), ("dbb", {}), ("mobileone", {"groups": 8})]:
        step(block_of(name, 8, 8, 3, **shape), image(2, 8, 9, 9), "merged")
    assert not recwarn.list


def frozen(block):
    block(image(4, 8, 9, 9))
    block.branches.apply(lambda m: m.eval() if hasattr(m, "running_mean") else m)
    return block


def test_frozen_norms_without_statistics_run_the_branches():
    block, x = frozen(block_of("mobileone", 8, 8, 1)), image(2, 8, 9, 9)
    norm = block.branches["kxk0"].norm
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    truth = step(block, x, "branchwise")
    with pytest.warns(UserWarning, match="a frozen BatchNorm has no running statistics"):
        assert_same(step(block, x, "weight_space"), truth)


def test_frozen_branches_that_have_no_kernel_run_as_they_are():
    block, x = frozen(block_of("mobileone", 8, 8, 1)), image(2, 8, 9, 9)
    block.branches["kxk0"] = nn.Sequential(block.branches["kxk0"], nn.Conv2d(8, 8, 3, padding=1))
    truth = step(block.double(), x, "branchwise")
    with pytest.warns(UserWarning, match="second map pads axis 0 with zeros.*not give zero there"):
        assert_same(step(block, x, "weight_space"), truth)
    x = image(64, 8, 32, 32)
    assert_same(step(block, x, "auto"), step(block, x, "branchwise"), 1e-15)


@pytest.mark.parametrize(
    "affine", [{"kxk0"}, {"kxk0", "kxk1", "kxk2", "kxk3", "identity"}], ids=len
)
def test_frozen_norms_without_a_weight_merge(affine):
    block, x = block_of("mobileone", 8, 8, 1), image(2, 8, 9, 9)
    for name in affine:
        block.branches[name].norm = nn.BatchNorm2d(8, affine=False).double()
    assert_same(step(frozen(block), x, "weight_space"), step(block, x, "branchwise"))


def test_an_average_among_frozen_branches():
    for groups in (1, 2, 8):
        block, x = block_of("mobileone", 8, 8, 3, groups=groups), image(2, 8, 9, 9)
        pool = [Pad(((1, 1), (1, 1))), AveragePool((3, 3), (1, 1), (1, 1))]
        block.branches["average"] = nn.Sequential(*pool, nn.BatchNorm2d(8).double())
        assert_same(step(frozen(block), x, "weight_space"), step(block, x, "branchwise"))


def test_norms_without_a_weight_merge():
    block, x = block_of("mobileone", 8, 8, 1), image(2, 8, 9, 9)
    for branch in block.branches.values():
        branch.norm = nn.BatchNorm2d(8, affine=False).double()
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))


@pytest.mark.parametrize("execution", ["merged", "weight_space"])
def test_norms_without_a_bias_merge(execution):
    block, x = block_of("mobileone", 8, 8, 1), image(2, 8, 9, 9)
    for branch in block.branches.values():
        branch.norm = nn.BatchNorm2d(8, bias=False).double()
    block = block if execution == "merged" else frozen(block)
    assert_same(step(block, x, execution), step(block, x, "branchwise"))


def test_an_unknown_execution_is_refused_where_it_is_set():
    block = block_of("mobileone", 8, 8, 1)
    for execution in ("fast", None):
        with pytest.raises(ConfigurationError, match=f"auto, branchwise, .*, got {execution!r}"):
            block.execution = execution
    assert block.execution == "auto"


def test_parametrized_weights_merge():
    block, x = block_of("mobileone", 8, 8, 3, groups=8), image(2, 8, 9, 9)
    parametrize.register_parametrization(block.branches["kxk0"].conv, "weight", nn.Tanh())
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))


def test_a_tree_of_one_unnormed_branch_runs():
    block, x = block_of("mobileone", 8, 8, 1), image(2, 8, 9, 9)
    block.branches = Sum({"bare": nn.Conv2d(8, 8, 1).double(), "normed": block.branches["kxk0"]})
    assert isinstance(block, ConvBlock)
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3)])
def test_the_order_of_the_branches_does_not_matter(shape):
    block = block_of("mobileone", *shape, groups=8 if shape[2] > 1 else 1)
    block.branches = Sum(dict(reversed(block.branches.items())))
    assert_same(
        step(block, image(2, 8, 9, 9), "merged"), step(block, image(2, 8, 9, 9), "branchwise")
    )


@pytest.mark.filterwarnings("ignore:execution=merged runs branchwise")
def test_a_crop_before_a_padded_convolution_is_not_one_kernel():
    block, x = block_of("mobileone", 8, 8, 3, groups=8), image(2, 8, 9, 9)
    for name, branch in block.branches.items():
        block.branches[name] = nn.Sequential(Pad(((-1, -1), (-1, -1))), *branch)
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))


def test_a_branch_that_is_replaced_is_read_anew():
    block, x = block_of("mobileone", 8, 8, 1), image(2, 8, 9, 9)
    block.execution = "merged"
    block(x)
    block.branches["kxk0"] = block_of("mobileone", 8, 8, 1, seed=1).branches["kxk0"]
    del block.branches["kxk1"]
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))
    block.branches["kxk2"].conv = nn.Conv2d(8, 8, 1, groups=2, bias=False).double()
    assert_same(step(block, x, "merged"), step(block, x, "branchwise"))


def dilate(block):
    for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1):
        conv.dilation = conv.padding = (2, 2)


def wrap_around(block):
    conv = block.branches["kxk0"].conv
    conv.padding_mode, conv._reversed_padding_repeated_twice = "circular", [1] * 4


def add_bias(block):
    block.branches["kxk0"].conv.bias = nn.Parameter(torch.ones(8).double())


@pytest.mark.parametrize("change", [dilate, wrap_around, add_bias])
@pytest.mark.parametrize("execution", ["merged", "weight_space"])
@pytest.mark.filterwarnings("ignore:execution=.* runs branchwise here")
def test_layers_that_are_set_otherwise_are_read_anew(change, execution):
    block, x = block_of("mobileone", 8, 8, 3, groups=8, execution=execution), image(2, 8, 9, 9)
    block = block if execution == "merged" else frozen(block)
    block(x)
    change(block)
    state = {key: value.clone() for key, value in block.state_dict().items()}
    found = block(x).detach()  # not of a copy, of which nothing is known
    block.load_state_dict(state)
    block.execution = "branchwise"
    assert torch.allclose(found, block(x), rtol=1e-12, atol=1e-12)


def test_a_block_that_was_run_can_be_forgotten():
    block = block_of("mobileone", 8, 8, 3, groups=8, execution="merged")
    block(image(2, 8, 9, 9))
    gone = weakref.ref(block.branches)
    del block
    gc.collect()
    assert gone() is None
