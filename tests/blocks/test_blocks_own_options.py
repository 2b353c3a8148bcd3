"""What single blocks do beyond the contract."""

import copy

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks.blocks import Registry, RepNeXtBlock, create_block
from repblocks.blocks._tail import ACTIVATIONS
from repblocks.errors import ConfigurationError, NotFoldable, UnknownNameError


def image(channels=6, size=9):
    return torch.randn(2, channels, size, size + 1, dtype=torch.float64)


@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize("scale", [True, False])
def test_mobileone_builds_the_branches_it_is_told(branches, scale):
    block = create_block(
        "mobileone", 6, 6, 3, groups=6, num_conv_branches=branches, use_scale_branch=scale
    )
    assert len(block.branches) == branches + scale + 1


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ({}, ["scale", "identity"]),
        ({"use_scale_branch": False}, ["identity"]),
        ({"kernel_size": 1}, ["identity"]),
        ({"out_channels": 12, "stride": 2}, ["scale"]),
        ({"kernel_size": 7, "groups": 6, "padding": 1}, ["scale", "identity"]),
    ],
    ids=str,
)
def test_mobileone_without_k_x_k_branches_is_one_kernel(shape, names, post_norm):
    torch.manual_seed(0)
    arguments = {"in_channels": 6, "out_channels": 6, "kernel_size": 3, **shape}
    block = create_block("mobileone", **arguments, num_conv_branches=0, post_norm=post_norm)
    branches = block.double().branches
    assert list(branches.sum if post_norm and len(names) > 1 else branches) == names
    x = image()
    truth = calibrate(block, x)(x)
    assert set(block.equivalent_kernel().kernel_size) == {1}
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < 1e-12


@pytest.mark.filterwarnings("ignore:execution=merged runs branchwise")
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobileone", {"num_conv_branches": 0}),
        ("mobileone", {"num_conv_branches": 0, "use_scale_branch": False}),
        ("acb", {"use_affine": False}),
        ("dbb", {}),
    ],
)
@pytest.mark.parametrize("groups", [1, 6])
def test_every_execution_trains_alike(name, options, groups, post_norm):
    torch.manual_seed(0)
    block = create_block(name, 6, 6, 3, groups=groups, post_norm=post_norm, **options).double()
    x, found = image().requires_grad_(), {}
    for execution in ("branchwise", "merged", "auto"):
        own = copy.deepcopy(block)  # the border of dbb comes from statistics that each run changes
        own.execution = execution
        y = own(x)
        leaves = [x, *own.parameters()]
        found[execution] = [y, *torch.autograd.grad(y.square().sum(), leaves)]
    for execution in ("merged", "auto"):
        for one, truth in zip(found[execution], found["branchwise"], strict=True):
            torch.testing.assert_close(one, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "shape", [{"kernel_size": 1, "stride": 2}, {"out_channels": 12, "use_scale_branch": False}]
)
def test_mobileone_needs_a_branch(shape):
    arguments = {"in_channels": 6, "out_channels": 6, "kernel_size": 3, **shape}
    with pytest.raises(ConfigurationError, match="num_conv_branches must be at least 1 where.*0"):
        create_block("mobileone", **arguments, num_conv_branches=0)


def test_identity_branches_need_the_shape_for_it():
    for shape, has_identity in [((6, 6), True), ((6, 8), False), ((6, 6, 2), False)]:
        stride = shape[2] if len(shape) > 2 else 1
        block = create_block("repvgg", *shape[:2], 3, stride)
        assert ("identity" in block.branches) == has_identity
        assert block.decayed_parameters() == (
            ("branches.identity.norm.weight",) if has_identity else ()
        )


@pytest.mark.parametrize("internal", [None, 4, 12])
def test_dbb_takes_internal_channels(internal):
    torch.manual_seed(0)
    block = create_block("dbb", 6, 4, 3, groups=2, internal_channels=internal).double()
    x = image()
    truth = calibrate(block, x)(x)
    block.switch_to_deploy()
    assert block.conv.groups == 2
    assert relative_error(block(x), truth) < 1e-12


def test_dbb_refuses_internal_channels_that_the_groups_do_not_divide():
    with pytest.raises(ConfigurationError, match="multiple of the 2 groups, got 5"):
        create_block("dbb", 6, 4, 3, groups=2, internal_channels=5)


def test_dbb_starts_its_inner_pointwise_from_the_identity():
    block = create_block("dbb", 6, 6, 3)
    pointwise, x = block.branches["pointwise_kxk"][0], torch.randn(1, 6, 5, 5)
    assert torch.equal(pointwise(x), x)


def test_dbb_pads_with_the_running_image_of_zero_while_it_trains():
    torch.manual_seed(0)
    node = create_block("dbb", 6, 6, 3).branches["pointwise_kxk"].norm_pad
    for _ in range(3):
        node(torch.randn(4, 6, 5, 5) + 1)
    norm = node.norm
    border = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.momentum = 0.0
    y = node(torch.randn(4, 6, 5, 5))
    corner = y[:, :, 0, 0]
    assert torch.allclose(corner, border.expand(4, 6))
    corner.sum().backward()
    assert norm.weight.grad is None or not norm.weight.grad.any()


def test_squeeze_and_excitation_stays_when_the_block_is_deployed():
    torch.manual_seed(0)
    block = create_block("repvgg", 6, 6, 3, se=0.5).double()
    x = image()
    truth = calibrate(block, x)(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < 1e-12
    gate = block.tail.se(block.conv(x)) / block.conv(x)
    assert 0 < gate.min() < gate.max() < 1


@pytest.mark.parametrize("shortcut", ["add", "expand"])
@pytest.mark.parametrize(
    "mixer", [{}, {"block": "dbb", "block_options": {"internal_channels": 16}}]
)
@pytest.mark.parametrize("options", [{}, {"kernel_sizes": (5, 3), "activation": "relu"}])
def test_repnext_has_two_deployed_forms(shortcut, mixer, options):
    torch.manual_seed(0)
    block = RepNeXtBlock(8, drop_path=0.2, deploy_shortcut=shortcut, **mixer, **options).double()
    x = image(8)
    truth = calibrate(block, x)(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < 1e-12
    assert isinstance(block.drop_path, nn.Identity)


@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize(("shortcut", "squares", "taps"), [("add", 8, 49), ("expand", 15, 98)])
def test_repnext_costs_what_its_docstring_says(channels, shortcut, squares, taps):
    block = calibrate(RepNeXtBlock(channels), torch.randn(2, channels, 8, 8))
    block.deploy_shortcut = shortcut
    block.switch_to_deploy()
    macs = sum(conv.weight.numel() for conv in (block.conv, block.pw1, block.pw2))
    assert macs == squares * channels**2 + taps * channels


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shortcut", ["add", "expand"])
def test_repnext_folds_with_every_activation(activation, shortcut):
    torch.manual_seed(0)
    block = RepNeXtBlock(8, activation=activation, deploy_shortcut=shortcut).double()
    x = image(8)
    truth = calibrate(block, x)(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < 1e-12


@pytest.mark.parametrize("activation", ["softmax", "softmin", "logsoftmax", "glu"])
def test_activations_that_mix_channels_are_refused(activation):
    with pytest.raises(UnknownNameError, match=f"Unknown activation '{activation}'"):
        RepNeXtBlock(8, activation=activation)


@pytest.mark.parametrize(
    ("block", "option", "message"),
    [
        ("mobileone", {"num_conv_branches": 2.5}, "a whole number of at least 0, got 2.5"),
        ("dbb", {"internal_channels": 0}, "multiple of the 1 groups, got 0"),
        ("dbb", {"internal_channels": 8.0}, r"multiple of the 1 groups, got 8\.0"),
        ("dbb", {"internal_channels": True}, "multiple of the 1 groups, got True"),
        ("dbb", {"internal_channels": -4}, "multiple of the 1 groups, got -4"),
        ("plain", {"kernel_size": 3.0}, r"kernel_size must be one whole number.*3\.0"),
        ("plain", {"stride": True}, "stride must be one whole number.*True"),
        ("plain", {"groups": True}, "groups must be a whole number of at least 1, got True"),
        ("plain", {"out_channels": 2.5}, "out_channels must be a whole number.*got 2.5"),
        ("plain", {"padding": 1.0}, r"padding must be one whole number.*got 1\.0"),
        ("plain", {"padding": (True, 1)}, r"padding must be one whole number.*\(True, 1\)"),
        ("plain", {"activation": 6}, "activation must be the name of a torch activation.*got 6"),
        ("plain", {"se": 1.5}, "se must be a fraction.*at most 1, got 1.5"),
        ("plain", {"se": "half"}, "se must be a fraction.*got 'half'"),
        ("mobileone", {"num_conv_branches": True}, "a whole number of at least 0, got True"),
        ("mobileone", {"use_scale_branch": 1}, "use_scale_branch must be true or false, got 1"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(block, option, message):
    with pytest.raises(ConfigurationError, match=message):
        create_block(block, **{"in_channels": 8, "out_channels": 8, "kernel_size": 3, **option})


def test_repnext_refuses_what_it_cannot_be():
    with pytest.raises(ConfigurationError, match=r"expansion must be .* at least 1, got 1\.5"):
        RepNeXtBlock(8, expansion=1.5)
    with pytest.raises(ConfigurationError, match=r"drop_path must be in \[0, 1\), got 1.5"):
        RepNeXtBlock(8, drop_path=1.5)
    with pytest.raises(ConfigurationError, match="block_options needs a block.*'internal_ch"):
        RepNeXtBlock(8, block_options={"internal_channels": 8})
    with pytest.raises(ConfigurationError, match="got 2 channels for 3 kernel sizes"):
        RepNeXtBlock(2)
    with pytest.raises(ConfigurationError, match="one of add, expand, got 'concat'"):
        RepNeXtBlock(8, deploy_shortcut="concat")
    with pytest.raises(UnknownNameError, match="Unknown conv block 'repnext'.*acb"):
        RepNeXtBlock(8, block="repnext")
    block = calibrate(RepNeXtBlock(8), torch.randn(2, 8, 9, 9))
    block.deploy_shortcut = "drop"
    with pytest.raises(ConfigurationError, match="got 'drop'"):
        block.switch_to_deploy()
    assert not block.is_deployed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_sizes": 7}, "kernel_sizes must be a list.*got 7"),
        ({"drop_path": "0.1"}, r"drop_path must be in \[0, 1\), got '0.1'"),
        ({"block": "acb", "block_options": {"se": 0.5}}, "Unknown option of 'acb' .* 'se'"),
        ({"block": "dbb", "block_options": {"stride": 2}}, "Unknown option of 'dbb' .* 'stride'"),
    ],
)
def test_repnext_refuses_options_of_the_wrong_kind(options, message):
    with pytest.raises((ConfigurationError, UnknownNameError), match=message):
        RepNeXtBlock(8, **options)


def test_a_stage_block_does_not_take_the_place_of_a_convolution():
    with pytest.raises(ConfigurationError, match="'repnext' is a stage block.*acb"):
        create_block("repnext", 8)


def repnext_with(name, part, **options):
    torch.manual_seed(0)
    block = RepNeXtBlock(8, **options).double()
    setattr(block, name, part.double())
    return calibrate(block, image(8))


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("mixer", nn.Conv2d(8, 8, 3, padding=1), "mixer must be a conv block"),
        ("mixer", create_block("plain", 8, 8, 3), "must not have anything after its branches"),
        ("act", nn.Softmax(1), "does the same to every value, got Softmax"),
        ("act", nn.PReLU(8), "does the same to every value, got PReLU"),
        ("drop_path", nn.ReLU(), "across a drop path that does nothing.*got ReLU"),
    ],
)
def test_repnext_expands_its_shortcut_only_across_what_it_was_made_of(name, part, message):
    block = repnext_with(name, part, deploy_shortcut="expand", expansion=1)
    before = [*block.state_dict()]
    with pytest.raises(NotFoldable, match=message):
        block.switch_to_deploy()
    assert before == [*block.state_dict()]


def test_repnext_keeps_which_of_its_convolutions_train():
    block = calibrate(RepNeXtBlock(8), torch.randn(2, 8, 9, 9))
    block.mixer.requires_grad_(False)
    block.pw2.requires_grad_(False)
    block.deploy_shortcut = "expand"
    block.switch_to_deploy()
    found = [conv.weight.requires_grad for conv in (block.conv, block.pw1, block.pw2)]
    assert found == [False, True, False]


def test_repnext_keeps_a_drop_path_that_is_another():
    block, x = repnext_with("drop_path", nn.ReLU()), image(8)
    truth = block(x)
    block.switch_to_deploy()
    assert relative_error(block(x), truth) < 1e-12


def test_a_registered_name_belongs_to_one_class():
    registry = Registry("block")
    registry.register("one")(nn.ReLU)
    registry.register("one")(nn.ReLU)
    with pytest.raises(ConfigurationError, match="'one' belongs to ReLU already"):
        registry.register("one")(nn.GELU)
    assert dict(registry) == {"one": nn.ReLU}
