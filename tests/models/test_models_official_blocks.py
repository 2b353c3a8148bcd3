"""Layouts of DBB, ACNet and OREPA: their names inside blocks, in the networks that have slots."""

import re

import official_swapped_nets as nets
import pytest
import torch
from models_nets import images, norms, small
from official_nets import switch
from truth import calibrate, relative_error

from repblocks import fold_blocks, load_official
from repblocks.errors import CheckpointError, ConfigurationError

RES = {"depths": (1, 1, 2), "widths": (4, 6, 8), "expansion": 1}
MOBILE = {"depths": (1, 2), "widths": (12, 16), "stem_width": 8}


def ours(family, block, **options):
    return lambda **form: small(family, block=block, **options, **form)


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
    "dbb resnet": (lambda: nets.ResNet(nets.DBB, (4, 6, 8)), ours("resnet", "dbb", **RES)),
    "dbb resnet of bottlenecks": (
        lambda: nets.ResNet(nets.DBB, (4, 6), residual=nets.Bottleneck),
        ours("resnet", "dbb", depths=(1, 1), widths=(4, 6), expansion=4),
    ),
    "dbb mobilenet": (
        lambda: nets.MobileNet(nets.DBB, (12, 16), 8),
        ours("mobilenetv1", "dbb", activation="relu", **MOBILE),
    ),
    "acnet resnet": (
        lambda: nets.ResNet(nets.acb, (4, 6, 8), nets.kept),
        ours("resnet", "acb", **RES),
        *ACNET_18,
    ),
    "acnet resnet of bottlenecks": (
        lambda: nets.ResNet(nets.acb, (4, 6), nets.kept, residual=nets.Bottleneck),
        ours("resnet", "acb", depths=(1, 1), widths=(4, 6), expansion=4),
        *ACNET_50,
    ),
    "acnet resnet for cifar": (
        lambda: nets.ResNet(nets.acb, (4, 6, 8), nets.kept, nets.named(conv1=nets.acb(3, 4, 3))),
        ours("resnet_cifar", "acb", depths=(1, 1, 2), widths=(4, 6, 8), shortcut="projection"),
        *ACNET_56,
    ),
    "acnet mobilenet": (
        lambda: nets.MobileNet(nets.acb, (12, 16), 8, nets.kept),
        ours("mobilenetv1", "acb", activation="relu", **MOBILE),
    ),
    "acnet vgg": (
        lambda: nets.VGG(nets.acb, (2, 1), (6, 8)),
        ours("vgg", "acb", depths=(2, 1), widths=(6, 8), num_classes=0),
    ),
}


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
    x = images(32, 4, dtype=torch.float64, seed=9)
    with torch.no_grad():
        wanted = truth(x)
        assert wanted.std(0).max() > 1e-3 * wanted.abs().max()
        assert relative_error(found(x), wanted) < tolerance


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
    message = "for plain ReLUs, and the activation of this one is 'relu6': build it with act"
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
