"""Layouts of DBB, ACNet and OREPA: their names inside blocks, in the networks that have slots."""

import re

import official_blocks as blocks
import official_swapped_nets as nets
import pytest
import timm
import torch
from models_nets import images, norms, small
from official_nets import assert_same_scores, named, switch
from truth import calibrate

from repblocks import fold_blocks, load_official
from repblocks.errors import CheckpointError, ConfigurationError, NotFoldable

RES = {"depths": (1, 1, 2), "widths": (4, 6, 8), "expansion": 1}
MOBILE = {"depths": (1, 2), "widths": (12, 16), "stem_width": 8}


def ours(family, block, **options):
    return lambda **form: small(family, block=block, **options, **form)


def large_stem(width):
    conv = blocks.OREPALarge(3, width, 7, 2)
    return named(conv1=conv, maxpool=torch.nn.MaxPool2d(3, 2, 1))


def pointwise(*sizes, **options):
    """OREPA's 1 x 1, but for the shortcuts, which say their stride."""
    kind = blocks.ConvBN if len(sizes) == 4 else blocks.PointwiseOREPA
    return kind(*sizes, **options)


#: The names of ACNet, for the stand-ins of DBB.
ACNET_18 = [(r"^stage0\.", "")]
ACNET_50 = [
    *ACNET_18,
    (r"^(stage\d)\.0\.shortcut\.", r"\1.projection."),
    (r"^(stage\d)\.(\d)\.", r"\1.block\2."),
    (r"^linear\.", "fc."),
]
ACNET_56 = [(r"^stage0\.conv1\.acb\.", "stage1.conv1."), *ACNET_50[1:-1]]
#: What makes a stand-in, our network, and other names of the stand-in's weights.
CASES = {
    "dbb resnet": (lambda: nets.ResNet(blocks.DBB, (4, 6, 8)), ours("resnet", "dbb", **RES)),
    "dbb resnet of bottlenecks": (
        lambda: nets.ResNet(blocks.DBB, (4, 6), residual=nets.Bottleneck),
        ours("resnet", "dbb", depths=(1, 1), widths=(4, 6), expansion=4),
    ),
    "dbb mobilenet": (
        lambda: nets.MobileNet(blocks.DBB, (12, 16), 8),
        ours("mobilenetv1", "dbb", activation="relu", **MOBILE),
    ),
    "acnet resnet": (
        lambda: nets.ResNet(blocks.acb, (4, 6, 8), blocks.kept),
        ours("resnet", "acb", **RES),
        *ACNET_18,
    ),
    "acnet resnet of bottlenecks": (
        lambda: nets.ResNet(blocks.acb, (4, 6), blocks.kept, residual=nets.Bottleneck),
        ours("resnet", "acb", depths=(1, 1), widths=(4, 6), expansion=4),
        *ACNET_50,
    ),
    "acnet resnet for cifar": (
        lambda: nets.ResNet(blocks.acb, (4, 6, 8), blocks.kept, named(conv1=blocks.acb(3, 4, 3))),
        ours("resnet_cifar", "acb", depths=(1, 1, 2), widths=(4, 6, 8), shortcut="projection"),
        *ACNET_56,
    ),
    "acnet mobilenet": (
        lambda: nets.MobileNet(blocks.acb, (12, 16), 8, blocks.kept),
        ours("mobilenetv1", "acb", activation="relu", **MOBILE),
    ),
    "orepa resnet": (
        lambda: nets.ResNet(blocks.OREPA, (4, 6, 8), stem=large_stem(4)),
        ours("resnet", "orepa", **RES),
    ),
    "orepa repvgg": (
        lambda: nets.RepVGG(blocks.OREPA, (8, 8, 16), groups=2),
        ours("repvgg", "orepa", groups=2),
    ),
    "orepa mobilenet": (
        lambda: nets.MobileNet(blocks.OREPA, (12, 16), 8),
        ours("mobilenetv1", "orepa", activation="relu", **MOBILE),
    ),
    "acnet vgg": (
        lambda: nets.VGG(blocks.acb, (2, 1), (6, 8)),
        ours("vgg", "acb", depths=(2, 1), widths=(6, 8), num_classes=0),
    ),
}
#: Those with a stem that is a series of kernels, which cannot take one of its size.
SERIES = {"orepa resnet"}


def trained(name):
    torch.manual_seed(7)
    x = [images(32, 8, dtype=torch.float64, seed=seed) for seed in (1, 2)]
    return calibrate(CASES[name][0]().double(), *x)


def state_of(name, truth):
    state = truth.state_dict()
    for pattern, replacement in CASES[name][2:]:
        new = {re.sub(pattern, replacement, key): value for key, value in state.items()}
        assert len(new) == len(state)
        assert new.keys() != state.keys()
        state = new
    return state


def loaded(name, state, **form):
    model = CASES[name][1](**form).double().eval()
    load_official(model, state)
    return model


def assert_same(found, truth, tolerance=1e-10):
    assert_same_scores(found, truth, images(32, 4, dtype=torch.float64, seed=9), tolerance)


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_training_weights_give_the_outputs_of_the_stand_in(name, deploy):
    truth = trained(name)
    model = loaded(name, state_of(name, truth), deploy=deploy)
    assert_same(model, truth)
    assert not (deploy and norms(model))


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_deployed_weights_give_the_outputs_of_the_stand_in(name, deploy):
    truth, before = trained(name), trained(name)
    switch(truth)
    assert_same(truth, before)
    assert truth.state_dict().keys() != before.state_dict().keys()
    if name in SERIES and not deploy:
        with pytest.raises(NotFoldable, match=r"OREPABlock has no branch .*kernel size \(7, 7\)"):
            loaded(name, state_of(name, truth))
        return
    model = loaded(name, state_of(name, truth), deploy=deploy)
    assert_same(model, truth)
    assert_same(fold_blocks(model)[0], truth)


def test_dbb_as_it_was_at_first_called():
    truth = trained("dbb resnet")
    old = {re.sub(r"\.(bn1?)\.bn\.", r".\1.", k): v for k, v in truth.state_dict().items()}
    assert len(old.keys() - truth.state_dict().keys()) == 8 * 2 * 5
    assert_same(loaded("dbb resnet", old), truth)


def test_mobilenet_of_other_activations_is_refused():
    state = trained("dbb mobilenet").state_dict()
    model = small("mobilenetv1", block="dbb", **MOBILE)
    message = "for the activation 'relu', and that of this one is 'relu6': build it with act"
    with pytest.raises(CheckpointError, match=message):
        load_official(model, state)


def test_a_branch_that_the_block_does_not_have_is_left_over():
    state = trained("dbb resnet").state_dict()
    branch = "stage1.0.conv1.dbb_1xk.conv.weight"
    with pytest.raises(CheckpointError, match=r"1 left over: stages\.0\.1\.path\.0\.dbb_1xk"):
        loaded("dbb resnet", {**state, branch: torch.ones(1)})
    less = {key: value for key, value in state.items() if ".dbb_1x1." not in key}
    with pytest.raises(CheckpointError, match=r"missing: .*path\.0\.branches\.pointwise\.conv"):
        loaded("dbb resnet", less)


def test_projections_need_the_option():
    name = "acnet resnet for cifar"
    state = state_of(name, trained(name))
    with pytest.raises(CheckpointError, match=r"left over: stages\.1\.0\.projection"):
        load_official(small("resnet_cifar", block="acb", depths=(1, 1, 2), widths=(4, 6, 8)), state)
    with pytest.raises(ConfigurationError, match="shortcut must be .*, got 'none'"):
        small("resnet_cifar", shortcut="none")


def test_a_stem_of_branches_takes_the_kernel_of_a_series():
    truth = switch(trained("orepa resnet"))
    options = {"block": "orepa", "block_options": {"large_kernel": "branches"}, **RES}
    model = small("resnet", **options).double().eval()
    load_official(model, truth.state_dict())
    assert_same(model, truth)


def test_a_stem_of_plain_kernels_in_a_series():
    truth = trained("orepa resnet")
    stem = truth.stage0.conv1
    for kernel in (stem.weight0, stem.weight1, stem.weight2):
        for name, weight in kernel.named_parameters():
            weight.data.zero_()
            if name == "vector":
                weight.data[0] = 1
            if name == "weight_orepa_origin":
                weight.data.normal_()
    calibrate(truth, images(32, 8, dtype=torch.float64))
    state = {
        re.sub(r"^(stage0\.conv1\.weight\d)\.weight_orepa_origin", r"\1", key): value
        for key, value in truth.state_dict().items()
        if not re.match(r"stage0\.conv1\.weight\d\.(?!weight_orepa_origin)", key)
    }
    assert {"stage0.conv1.weight2", "stage0.conv1.bn.weight"} <= state.keys()
    options = {"block": "orepa", "block_options": {"large_kernel": "plain"}, **RES}
    model = small("resnet", **options).double().eval()
    load_official(model, state)
    assert_same(model, truth)


def test_fixed_filters_of_other_values_are_refused():
    state = trained("orepa repvgg").state_dict()
    state["stage0.weight_orepa_prior"] = state["stage0.weight_orepa_prior"].flip(0)
    message = "weight_orepa_prior of the checkpoint is not what is fixed here"
    with pytest.raises(CheckpointError, match=message):
        loaded("orepa repvgg", state)


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("deployed_file", [False, True])
def test_orepa_in_pointwise_places_is_a_kernel(deployed_file, deploy):
    torch.manual_seed(7)
    options = {"stem": large_stem(4), "residual": nets.Bottleneck}
    truth = nets.ResNet(blocks.OREPA, (4, 6), pointwise, **options).double()
    calibrate(truth, images(32, 8, dtype=torch.float64))
    if deployed_file:
        switch(truth)
    last = "or1x1_reparam.weight" if deployed_file else "weight_or1x1_l2i_conv2"
    assert f"stage1.0.conv3.{last}" in truth.state_dict()
    options = {"depths": (1, 1), "widths": (4, 6), "expansion": 4, "deploy": deploy}
    kind = {"large_kernel": "branches" if deployed_file else "orepa"}
    model = small("resnet", block="orepa", block_options=kind, **options).double().eval()
    load_official(model, truth.state_dict())
    assert_same(model, truth)


@pytest.mark.parametrize("deploy", [False, True])
def test_the_dense_branch_of_orepa_in_repvgg_is_a_kernel(deploy):
    torch.manual_seed(7)
    truth = nets.RepVGG(blocks.DenseOREPA, (8, 8, 16)).double()
    calibrate(truth, images(32, 8, dtype=torch.float64))
    state = {}
    for key, value in truth.state_dict().items():
        if key.endswith(".vector"):
            more = [0, 1, 2, 3, 5, *([4] if value.shape[1] == 16 else [])]  # one of no use
            state[key] = value[more]
        elif not key.endswith(".weight_orepa_1x1"):
            state[key.replace("weight_orepa", "weight_rbr")] = value
    assert {"stage0.rbr_dense.weight_rbr_origin", "stage2.1.rbr_identity.bias"} <= state.keys()
    model = small("repvgg", deploy=deploy).double().eval()
    load_official(model, state)
    assert_same(model, truth)
    few = {**state, "stage0.rbr_dense.vector": state["stage0.rbr_dense.vector"][:3]}
    with pytest.raises(CheckpointError, match="vector has 3 rows for 5 kernels"):
        load_official(model, few)
    turned = {**state, "stage0.rbr_dense.weight_rbr_gconv_dw": torch.ones(3, 4)}
    with pytest.raises(CheckpointError, match="has a shape that does not fit the others"):
        load_official(model, turned)
    del state["stage0.rbr_dense.weight_rbr_gconv_dw"]
    with pytest.raises(CheckpointError, match=r"10 left over: .*weight_rbr_1x1_kxk.* missing"):
        load_official(model, state)


@pytest.mark.parametrize("name", ["dbb resnet", "acnet resnet", "orepa resnet", "orepa repvgg"])
def test_names_of_ours_stay_what_they_are(name):
    truth = loaded(name, state_of(name, trained(name)))
    assert_same(loaded(name, truth.state_dict()), truth)
    assert_same(loaded(name, fold_blocks(truth)[0].state_dict(), deploy=True), truth)


def test_weights_for_another_activation_are_refused():
    theirs = timm.create_model("mobilenetv1_100", num_classes=5)
    ours = timm.create_model("repblocks_mobilenetv1_100", num_classes=5, activation="relu")
    with pytest.raises(CheckpointError, match="'relu6', and that of this one is 'relu'"):
        load_official(ours, theirs.state_dict())


def test_kernels_along_other_axes_are_refused():
    model = small("resnet_cifar", block="acb")
    state = model.state_dict()
    turned = {
        key.replace("skeleton0", "x").replace("skeleton1", "skeleton0").replace("x", "skeleton1")
        if "skeleton" in key
        else key: value
        for key, value in state.items()
    }
    assert turned.keys() == state.keys()
    with pytest.raises(CheckpointError, match=r"skeleton0.conv.weight"):
        load_official(model, turned)
