"""expand=true: a run starts as its trained network without blocks, and folds back to it."""

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir

from repblocks import fold
from repblocks.blocks import ConvBlock
from repblocks.cli.composing import config_folder, register
from repblocks.cli.parts import build_parts
from repblocks.errors import RepblocksError

TINY = [
    *("data=synthetic", "data.train_size=64", "data.val_size=16", "data.batch_size=16"),
    *("data.image_size=32", "data.num_classes=10", "model=timm", "model.name=resnet10t"),
]


@pytest.fixture(autouse=True, scope="module")
def hydra():
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield


def parts(*overrides):
    return build_parts(compose("train", [*TINY, *overrides]))


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("resnet10t", num_classes=10).eval()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    return model, f"model.weights={tmp_path / 'net.pth'}"


def test_a_run_starts_as_the_network_it_expands(weights):
    model, where = weights
    found = parts("expand=true", "block=dbb", where)
    blocks = [m for m in found.model.modules() if isinstance(m, ConvBlock)]
    assert len(blocks) == 11
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        truth = model.double()(x.double())
        assert (found.model.eval().double()(x.double()) - truth).norm() < 1e-5 * truth.norm()
    kwargs = found.description["model"]["kwargs"]
    assert (kwargs["name"], kwargs["block"]) == ("resnet10t", "dbb")
    assert "weights" not in kwargs
    # What the checkpoint describes has the parameters that are trained, and folds back.
    rebuilt = timm.create_model("repblocks_timm", **kwargs)
    assert rebuilt.state_dict().keys() == found.model.state_dict().keys()
    folded, back = (fold(m.float(), x, verify=False) for m in (model, found.model))
    assert folded.state_dict().keys() == back.state_dict().keys()


def test_the_same_seed_expands_to_the_same_weights(weights):
    _, where = weights
    one, two = (parts("expand=true", "block=acb", where).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_continued_run_is_not_expanded_again():
    found = parts("expand=true", "block=acb", "ckpt_path=last.ckpt")
    assert any(isinstance(m, ConvBlock) for m in found.model.modules())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.weights=x"], "expand=true needs the block to expand into: block=NAME."),
        (["block=acb"], "expand=true starts from a trained network: init_from=CHECKPOINT, model.w"),
        (["block=acb", "model.weights=x"], "weights cannot be read from x"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(RepblocksError, match=message):
        parts("expand=true", *overrides)
