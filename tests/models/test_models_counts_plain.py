"""Parameters and multiply-adds of networks of plain blocks, against torchvision's integers."""

import pytest
import timm
import torch
import torchvision.models
from models_nets import count_macs, count_parameters, norms


def counts(model):
    return count_parameters(model), count_macs(model, 224)


def meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(f"repblocks_{name}", **options)


def theirs(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    model.num_classes = 1000
    return model


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet(depth):
    parameters, macs = counts(theirs(f"resnet{depth}"))
    assert counts(meta(f"resnet_{depth}")) == (parameters, macs)
    # Deployed, each convolution has a bias in the place of its BatchNorm's weight and bias.
    left = sum(norm.num_features for norm in norms(theirs(f"resnet{depth}")))
    assert counts(meta(f"resnet_{depth}", deploy=True)) == (parameters - left, macs)


@pytest.mark.parametrize(("deploy", "name"), [(False, "vgg16_bn"), (True, "vgg16")])
def test_vgg(deploy, name):
    model, other = meta("vgg_16", deploy=deploy), theirs(name)
    head = 512 * 1000
    # torchvision's convolutions have biases before their BatchNorms, which do nothing.
    idle = sum(norm.num_features for norm in norms(other))
    features = count_parameters(other.features) - idle
    assert count_parameters(model) == features + head + 1000
    dense = sum(m.weight.numel() for m in other.classifier if isinstance(m, torch.nn.Linear))
    assert count_macs(model, 224) == count_macs(other, 224) - dense + head


@pytest.mark.parametrize("variant", ["a0", "b1g2"])
def test_qarepvgg(variant):
    # One norm of the sum, none of the 1 x 1 and of the identity; deployed the same network.
    pairs = [(meta(f"{f}_{variant}"), meta(f"{f}_{variant}", deploy=True)) for f in FAMILIES]
    (repvgg, repvgg_deployed), (ours, ours_deployed) = pairs
    assert counts(ours_deployed) == counts(repvgg_deployed)
    identities = [norm for name, norm in repvgg.named_modules() if name.endswith("identity.norm")]
    expected = count_parameters(repvgg) - 2 * sum(norm.num_features for norm in identities)
    assert identities
    assert counts(ours) == (expected, count_macs(repvgg, 224))


FAMILIES = ("repvgg", "qarepvgg")
