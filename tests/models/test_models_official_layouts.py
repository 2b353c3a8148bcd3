"""Layouts that no package has: stand-ins with their names, and outputs that must be the same."""

import re
from pathlib import Path

import official_nets as nets
import official_plain_nets as plain
import pytest
import timm
import torch
import torchvision
from models_nets import images, norms, small
from official_nets import assert_same_scores, switch
from torch import nn
from torchvision.models.vgg import make_layers
from truth import calibrate, relative_error

import repblocks.models
from repblocks import expand, fold_blocks, load_official
from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.models import ECBSR, SPAN, RepLKNet

QA = {"depths": (1, 2), "widths": (8, 16), "stem_width": 8}
LK = {"depths": (2, 1), "dims": (6, 8), "kernel_sizes": (9, 7)}
XL = {**LK, "small_kernel": None, "dw_ratio": 1.5}
UNI = {"depths": (1, 3), "dims": (8, 12), "kernel_sizes": ((3,), (7, 3))}


def enlarging(network, **options):
    def create(deploy=False):
        torch.manual_seed(0)
        return network(2, deploy=deploy, **options)

    return create


def ours(family, **options):
    return lambda **form: small(family, **options, **form)


def ours_xl(**form):  # timm leaves out arguments that are None
    torch.manual_seed(0)
    return timm.create_model("repblocks_replknet_xl", num_classes=5, **LK, **form)


#: What makes a stand-in, and our network.
CASES = {
    "qarepvgg": (lambda: nets.QARepVGG(**QA), ours("repvgg", own_block="qarepvgg")),
    "qarepvgg of yolov6": (
        lambda: nets.QARepVGG(**QA, keeps_norm=True),
        ours("repvgg", block="qarepvgg", block_options={"use_average": False}),
    ),
    "replknet": (lambda: nets.RepLKNet(**LK), ours("replknet", **LK)),
    "replknet xl": (lambda: nets.RepLKNet(**XL), ours_xl),
    "unireplknet": (lambda: nets.UniRepLKNet(**UNI), ours("unireplknet", **UNI)),
    "vanillanet": (
        lambda: plain.VanillaNet((6, 6, 12, 12, 12), (1, 2, 1, 2), 1),
        ours("vanillanet", depths=(1, 2, 1), dims=(6, 12, 12), act_reach=1),
    ),
    "vanillanet that pools to sizes": (
        lambda: plain.VanillaNet((6, 6, 12, 12), (1, 6, 4), 1),
        ours("vanillanet", depths=(1, 1, 1), dims=(6, 12, 12), act_reach=1, pool_to=(6, 4)),
    ),
    "ecbsr": (lambda: plain.ECBSR(1, 6, 2), enlarging(ECBSR, depth=1, width=6)),
    "span": (lambda: plain.SPAN(6, 2), enlarging(SPAN, width=6)),
}


def pictures(name, seed=1):
    channels = 1 if name == "ecbsr" else 3
    return images(32, 4, channels, torch.float64, seed)


def trained(name):
    torch.manual_seed(7)
    return calibrate(CASES[name][0]().double(), pictures(name), pictures(name, 2))


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_training_weights_give_the_outputs_of_the_stand_in(name, deploy):
    truth, model = trained(name), CASES[name][1](deploy=deploy).double().eval()
    load_official(model, truth.state_dict())
    assert_same_scores(model, truth, pictures(name, 9))
    assert not (deploy and norms(model))


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_deployed_weights_give_the_outputs_of_the_stand_in(name, deploy):
    truth, x = trained(name), pictures(name, 9)
    with torch.no_grad():
        before = truth(x)
        names = truth.state_dict().keys()
        assert relative_error(switch(truth)(x), before) < 1e-10
    assert truth.state_dict().keys() != names
    model = CASES[name][1](deploy=deploy).double().eval()
    load_official(model, truth.state_dict())
    assert_same_scores(model, truth, x, 1e-10 if deploy else 1e-9)
    assert_same_scores(fold_blocks(model)[0], truth, x, 1e-9)


def loaded(name, state, **form):
    model = CASES[name][1](**form).double().eval()
    load_official(model, state)
    return model


def renamed(state, *rules):
    for pattern, replacement in rules:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    return state


def test_a_part_of_a_norm_that_is_kept_is_refused():
    state = switch(trained("qarepvgg of yolov6")).state_dict()
    del state["stage0.bn.weight"]
    with pytest.raises(CheckpointError, match=r"without .*stem\.branches\.norm\.weight"):
        loaded("qarepvgg of yolov6", state)


@pytest.mark.parametrize("deployed_file", [False, True])
def test_replknet_of_openmmlab(deployed_file):
    truth = trained("replknet")
    state = switch(truth).state_dict() if deployed_file else truth.state_dict()
    rules = (r"^head\.", "head.fc."), (r"^norm\.", "stages.1.norm."), (r"^(?!head)", "backbone.")
    state = renamed(state, *rules)
    assert {"backbone.stages.1.norm.weight", "head.fc.bias"} <= state.keys()
    assert_same_scores(loaded("replknet", state, deploy=True), truth, pictures("replknet", 9))


@pytest.mark.parametrize("deployed_file", [False, True])
def test_unireplknet_as_timm_calls_convnext(deployed_file):
    truth = trained("unireplknet")
    state = switch(truth).state_dict() if deployed_file else truth.state_dict()
    state = renamed(
        state,
        (r"^downsample_layers\.0\.", "stem."),
        (r"^stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
        (r"^downsample_layers\.(\d+)\.(\d+)", r"stages.\1.downsample.\2"),
        ("dwconv", "conv_dw"),
        ("pwconv", "mlp.fc"),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    )
    assert {"stages.1.downsample.0.weight", "stages.0.blocks.1.conv_dw.weight"} - state.keys() == {
        "stages.0.blocks.1.conv_dw.weight"  # the first stage has one block
    }
    assert_same_scores(loaded("unireplknet", state, deploy=True), truth, pictures("unireplknet", 9))


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("deployed_file", [False, True])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_unireplknet_as_a_backbone(prefix, deployed_file, deploy):
    torch.manual_seed(7)
    truth = nets.UniRepLKNetBackbone(**UNI).double()
    calibrate(truth, pictures("unireplknet"))
    state = (switch(truth) if deployed_file else truth).state_dict()
    state = {f"{prefix}{name}": value for name, value in state.items()}
    if prefix:
        state["neck.lateral_convs.0.conv.weight"] = torch.zeros(4, 8, 1, 1)
    options = {"feature_norms": True, "num_classes": 0, "deploy": deploy}
    model = small("unireplknet", **UNI, **options).double().eval()
    load_official(model, state)
    x = pictures("unireplknet", 9)
    with torch.no_grad():
        pairs = [*zip(model.normed_features(x), truth(x), strict=True)]
    assert len(pairs) == len(UNI["dims"])
    for found, wanted in pairs:
        assert relative_error(found, wanted) < 1e-9


def test_norms_of_features_need_the_option():
    state = nets.UniRepLKNetBackbone(**UNI).state_dict()
    model = small("unireplknet", **UNI, num_classes=0)
    with pytest.raises(CheckpointError, match=r"left over: norm0\.bias, norm0\.weight"):
        load_official(model, state)
    with pytest.raises(ConfigurationError, match="needs a network with feature_norms=True"):
        model.normed_features(images(32))
    with pytest.raises(ConfigurationError, match="feature_norms must be true or false, got 1"):
        small("unireplknet", feature_norms=1)


@pytest.mark.parametrize("deploy", [False, True])
def test_qarepvgg_of_version_1(deploy):
    torch.manual_seed(7)
    x = pictures("qarepvgg", 9)
    truth = calibrate(nets.QARepVGG(**QA, version=1).double(), x)
    options = {"block": "qarepvgg", "block_options": {"version": 1}, "deploy": deploy}
    model = small("repvgg", **options).double().eval()
    load_official(model, truth.state_dict())
    assert_same_scores(model, truth, x)
    with pytest.raises(CheckpointError, match=r"pointwise\.norm\.weight"):
        load_official(CASES["qarepvgg"][1](), truth.state_dict())


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_resnet_of_torchvision_loads_and_is_expanded(depth, prefix):
    torch.manual_seed(7)
    peer = getattr(torchvision.models, f"resnet{depth}")(num_classes=5, width_per_group=64)
    truth = calibrate(peer.double(), images(32, 8, dtype=torch.float64))
    state = renamed(peer.state_dict(), (r"^(?!fc)", prefix))
    options = {"num_classes": 5, "deploy": bool(prefix)}
    model = timm.create_model(f"repblocks_resnet_{depth}", **options).double().eval()
    load_official(model, state)
    x = images(32, 3, dtype=torch.float64, seed=9)
    assert_same_scores(model, truth, x)
    if depth == 18 and prefix:
        expanded = expand(model, block="repvgg", data=[x])
        assert_same_scores(expanded.eval(), truth, x, 1e-9)


@pytest.mark.parametrize("deploy", [False, True])
def test_vgg_for_cifar(deploy):
    torch.manual_seed(7)
    x, row = pictures("vgg", 9), {"depths": (2, 1, 2), "widths": (8, 12, 16)}
    truth = calibrate(plain.FlatVGG(**row).double(), x, pictures("vgg"))
    model = small("vgg", **row, deploy=deploy).double().eval()
    load_official(model, truth.state_dict())
    assert_same_scores(model, truth, x)


def test_features_of_vgg_of_torchvision():
    torch.manual_seed(7)
    x, row = pictures("vgg", 9), {"depths": (2, 1), "widths": (8, 16)}
    features = make_layers([8, 8, "M", 16, "M"], batch_norm=True).double()
    truth = nn.Sequential(calibrate(features, x), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    state |= {"classifier.0.weight": torch.zeros(4, 4), "pre_logits.fc1.bias": torch.zeros(4)}
    model = small("vgg", **row, num_classes=0).double().eval()
    load_official(model, state)
    assert_same_scores(model, truth, x)
    message = r"2 left over: classifier\.0\.weight, pre_logits.*2 missing: head\.fc\.bias"
    with pytest.raises(CheckpointError, match=message):
        load_official(small("vgg", **row), state)


@pytest.mark.parametrize("name", ["vanillanet", "unireplknet"])
def test_layers_that_the_network_does_not_have_are_left_over(name):
    state = trained(name).state_dict()
    last = max(key for key in state if key.startswith("stages."))
    state[re.sub(r"^stages\.\d+", "stages.9", last)] = state[last]
    with pytest.raises(CheckpointError, match=r"1 left over: stages\.9\."):
        loaded(name, state)


@pytest.mark.parametrize("deploy", [False, True])
def test_weights_with_and_without_auxiliary_classifiers(deploy):
    options = {"depths": (1, 1, 2, 1), "widths": (8, 8, 8, 16), "own_block": "repvgg_plus"}
    guided = calibrate(small("repvgg", **options, auxiliary=True), images(32))
    bare = {k: v for k, v in guided.state_dict().items() if not k.startswith("auxiliary.")}
    model = small("repvgg", **options, auxiliary=True, deploy=deploy)
    if deploy:
        load_official(model, guided.state_dict())
        load_official(model, bare)
        return
    load_official(model, guided.state_dict())
    load_official(small("repvgg", **options, auxiliary=False), bare)
    message = r"missing: auxiliary\.heads.* build the network with auxiliary=False"
    with pytest.raises(CheckpointError, match=message):
        load_official(model, bare)
    deployed = fold_blocks(guided)[0]
    load_official(deployed, bare)
    assert not any(key.startswith("auxiliary.") for key in deployed.state_dict())


def test_the_page_on_weights_names_every_network():
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    networks = [
        network
        for network in vars(repblocks.models).values()
        if isinstance(network, type) and "official_rules" in vars(network)
    ]
    assert {RepLKNet, SPAN} <= set(networks)
    assert all(f"`{network.__name__}`" in page for network in networks)
