"""Any network of timm by name: with blocks, folded for its architecture, and what is refused."""

import pytest
import timm
import torch
from models_nets import images, norms
from truth import calibrate, relative_error

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks import fold
from repblocks.blocks import ConvBlock
from repblocks.errors import ConfigurationError, UnknownNameError

#: Normalisation after convolution, before it, over concatenations, and a scale after an activation.
NETWORKS = ["resnet18", "densenet121", "efficientnet_b0", "hgnetv2_b0", "repvit_m0_9"]


def create(name, **options):
    torch.manual_seed(0)
    return timm.create_model("repblocks_timm", name=name, num_classes=5, **options)


def test_without_a_block_it_is_the_network_itself():
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", num_classes=5)
    named = create("resnet18")
    assert type(named) is type(plain)
    states = plain.state_dict(), named.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_block_takes_the_places_of_its_convolutions():
    model = create("resnet18", block="dbb")
    assert sum(isinstance(m, ConvBlock) for m in model.modules()) == 17
    options = create("resnet18", block="mobileone", block_options={"num_conv_branches": 2})
    assert sum(isinstance(m, ConvBlock) for m in options.modules()) == 17


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_state_loads_into_the_deployed_form(name):
    model = create(name).double()
    for norm in norms(model):
        norm.momentum = None
    calibrate(model, images(64, dtype=torch.float64))
    x = images(64, dtype=torch.float64, seed=2)
    folded = fold(model, x)
    deployed = create(name, deploy=True, pretrained_cfg={"input_size": (3, 64, 64)}).double()
    assert deployed.training
    deployed.load_state_dict(folded.state_dict(), strict=True)
    with torch.no_grad():
        assert relative_error(deployed.eval()(x), model(x)) < 1e-9


def test_local_weights_are_loaded_before_the_block_is_put_in(tmp_path):
    first = create("resnet18")
    torch.save(first.state_dict(), tmp_path / "net.pth")
    torch.manual_seed(1)
    model = create("resnet18", weights=str(tmp_path / "net.pth"), block="acb")
    kept, swapped = model.state_dict(), first.state_dict()
    shared = kept.keys() & swapped.keys()
    assert "fc.weight" in shared
    assert all(torch.equal(kept[key], swapped[key]) for key in shared)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigurationError, "name is required"),
        ({"name": "resnet18", "block_options": {"se": 1}}, ConfigurationError, "needs a block.*se"),
        ({"name": "resnet19"}, UnknownNameError, "'resnet19'.*Did you mean 'resnet1"),
        ({"name": "vit_tiny_patch16_224", "block": "acb"}, ConfigurationError, "None of the"),
        ({"name": "resnet18", "block": "acc"}, UnknownNameError, "'acc'.*Did you mean 'acb'"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        timm.create_model("repblocks_timm", **arguments)
