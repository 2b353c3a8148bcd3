"""Each block in each family: the folded network is the same function, without a BatchNorm."""

import copy

import pytest
import timm
import torch
from models_nets import FAMILIES, families, images, norms, small
from timm.utils import reparameterize_model
from truth import calibrate, relative_error, rms_error

from repblocks.blocks import CONV_BLOCKS, ConvBlock, anneal
from repblocks.errors import NotFoldable
from repblocks.folding.switch import fold_blocks, switch_blocks

#: Every block in the networks that are made of conv blocks, some where only a few are.
PAIRS = [
    (family, block)
    for family in FAMILIES
    for block in (None, *CONV_BLOCKS)
    if family in ("repvgg", "mobileone", "repnext", "resnet_cifar") or block in (None, "dbb")
]
pairs = pytest.mark.parametrize(("family", "block"), PAIRS)


def settled(model):
    """Make the statistics the mean of all batches: the first values 0 and 1 leave no trace."""
    for norm in norms(model):
        norm.momentum = None
    return model


def trained(family, **options):
    """A network with perturbed statistics, in float64 and evaluation mode."""
    model = settled(small(family, **options).double())
    anneal(model, 1.0)
    return calibrate(model, *(images(dtype=torch.float64, count=8, seed=i) for i in range(3)))


@pairs
def test_folded_network_is_the_same_function(family, block):
    model = trained(family, block=block)
    x = images(dtype=torch.float64, seed=9)
    with torch.no_grad():
        truth = model(x)
        folded, report = fold_blocks(model)
        assert relative_error(folded(x), truth) < 1e-10
    # The scores of different images differ: a dead signal would prove nothing.
    assert truth.std(0).max() > 1e-3 * truth.abs().max()
    assert report
    assert norms(model)
    assert not norms(folded)


@pairs
def test_state_of_a_switched_network_loads_into_a_deployed_one(family, block):
    folded, _ = fold_blocks(trained(family, block=block))
    deployed = small(family, block=block, deploy=True).double().eval()
    deployed.load_state_dict(folded.state_dict(), strict=True)
    x = images(dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(deployed(x), folded(x))


def test_qarepvgg_folds():
    torch.manual_seed(0)
    row = {"depths": (1, 2, 1, 1), "widths": (8, 8, 12, 16), "stem_width": 8, "num_classes": 5}
    model = settled(timm.create_model("repblocks_qarepvgg_b1g2", **row).double())
    calibrate(model, *(images(32, dtype=torch.float64, count=8, seed=i) for i in range(3)))
    kinds = {type(m) for m in model.modules() if isinstance(m, ConvBlock)}
    folded, _ = fold_blocks(model)
    x = images(32, dtype=torch.float64, seed=9)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-10
    assert kinds == {CONV_BLOCKS["qarepvgg"]}
    assert not norms(folded)


def test_vanillanet_folds_at_the_end_of_its_annealing_only():
    model = trained("vanillanet")
    anneal(model, 0.9)
    with pytest.raises(NotFoldable, match=r"Cannot fold stem .*slope is 1, got 0\.9"):
        fold_blocks(model)


@pytest.mark.parametrize("shortcut", ["add", "expand"])
def test_both_shortcuts_of_repnext_fold(shortcut):
    model = trained("repnext", deploy_shortcut=shortcut, drop_path_rate=0.2)
    folded, _ = fold_blocks(model)
    x = images(dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-10
    deployed = small("repnext", deploy_shortcut=shortcut, drop_path_rate=0.2, deploy=True)
    shapes = {name: tensor.shape for name, tensor in deployed.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in folded.state_dict().items()}


def test_squeeze_and_excitation_stays_after_folding():
    model = trained("mobileone", se_blocks=(1, 1, 1, 1))
    gates = [name for name in model.state_dict() if ".se." in name]
    folded, _ = fold_blocks(model)
    assert gates == [name for name in folded.state_dict() if ".se." in name] != []


@pytest.mark.parametrize(
    ("name", "size"),
    [("repvgg_tiny", 28), ("mobileone_s0", 64), ("repnext_mini", 28), ("resnet_cifar_20", 28)],
)
def test_single_precision_is_as_exact_as_the_training_form(name, size):
    torch.manual_seed(0)
    model = settled(timm.create_model(f"repblocks_{name}", num_classes=10))
    calibrate(model, *(images(size, 8, seed=i) for i in range(2)))
    exact, (folded, _) = copy.deepcopy(model).double(), fold_blocks(model)
    for seed in range(8):
        x = images(size, 2, seed=100 + seed)
        with torch.no_grad():
            truth = exact(x.double())
            assert rms_error(folded(x), truth) <= 2 * rms_error(model(x), truth) + 1e-7


@families
def test_a_network_is_folded_whole_or_left_as_it_is(family):
    model = trained(family)
    last = [m for m in model.modules() if isinstance(m, ConvBlock)][-1]
    last.train()
    before = [*model.state_dict()]
    with pytest.raises(NotFoldable, match=r"Cannot fold \w+.* training mode"):
        switch_blocks(model)
    assert before == [*model.state_dict()]


@families
def test_timms_reparameterize_model_finds_every_block(family):
    model = trained(family)
    x = images(dtype=torch.float64)
    folded = reparameterize_model(model)
    assert not norms(folded)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-10


@families
def test_copy_folds_and_leaves_the_original(family):
    model = trained(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    switch_blocks(copy.deepcopy(model))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@families
def test_deployed_network_starts_finite_and_trains(family):
    model = small(family, deploy=True)
    assert model.training
    model(images()).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.device.type == "cpu", name
        assert parameter.isfinite().all(), name
        assert parameter.grad is not None, name
