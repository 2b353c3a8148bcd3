"""Each file of each group composes, and every node of it passes the check."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from repblocks.blocks import CONV_BLOCKS
from repblocks.cli.building import build_data
from repblocks.cli.checking import check, parameters_of
from repblocks.cli.checking_network import check_network
from repblocks.cli.checking_train import check_train
from repblocks.cli.composing import config_folder, plain, register
from repblocks.cli.config import DeployConfig
from repblocks.cli.parts import build_parts
from repblocks.errors import ConfigurationError
from repblocks.training import MixConfig, OptimizerConfig, RepOptimizerConfig

FOLDER = config_folder()
CHOICES = [f"{path.parent.name}={path.stem}" for path in sorted(FOLDER.glob("*/*.yaml"))]


@pytest.fixture(autouse=True, scope="module")
def hydra():
    register()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        yield


@pytest.mark.parametrize("choice", [*CHOICES, *(f"block={name}" for name in CONV_BLOCKS)])
def test_it_composes_and_passes_the_check(choice):
    required = ["model.name=resnet18"] if choice == "model=timm" else []
    check_train(compose("train", [choice, *required]))


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("experiment=")])
def test_an_experiment_can_be_changed_on_the_command_line(choice):
    config = compose(
        "train", [choice, "data=synthetic", "++trainer.max_epochs=3", "debug=one_batch"]
    )
    check_train(config)
    assert config.data._target_.endswith("SyntheticDataModule")
    assert config.trainer.max_epochs == 3


#: Recipes whose published code resizes by bicubic interpolation.
BICUBIC = {
    *("fastvit_t8", "replknet_31b", "repnext_chunk_m1", "repnext_tiny", "repvit_m0_9"),
    *("unireplknet_t", "vanillanet_5"),
}


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.endswith("_imagenet")])
def test_a_recipe_resizes_as_its_published_code(choice):
    data = build_data(compose("train", [choice]).data)
    name = choice.removeprefix("experiment=").removesuffix("_imagenet")
    expected = "bicubic" if name in BICUBIC else "bilinear"
    assert data.preprocessing["interpolation"] == expected


#: Learning rate, epochs and name of the optimizer of code that decays biases and norms, too.
DECAY_ALL = {
    "acb_cifar": (0.2, 400, "momentum"),
    "plain_cifar": (0.2, 400, "momentum"),
    "dbb_cifar": (0.2, 400, "momentum"),
    "dyrep_cifar": (0.1, 600, "momentum"),
    "acb_resnet18_imagenet": (0.1, 100, "momentum"),
    "dbb_resnet18_imagenet": (0.1, 120, "momentum"),
    "dbb_mobilenetv1_imagenet": (0.1, 120, "momentum"),
}


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("experiment=")])
def test_recipes_decay_what_their_published_code_decays(choice):
    config = compose("train", [choice])
    name = choice.removeprefix("experiment=")
    assert config.optimizer.decay_all == (name in DECAY_ALL)
    if name in DECAY_ALL:
        found = (config.optimizer.lr, config.trainer.max_epochs, config.optimizer.name)
        assert found == DECAY_ALL[name]
        assert config.optimizer.weight_decay == 1e-4


def test_without_arguments_it_is_the_quick_start():
    assert compose("train") == compose("train", ["experiment=mnist5k"])


@pytest.mark.parametrize("overrides", [[], ["model=timm", "model.name=resnet18", "block=acb"]])
def test_deploy_composes(overrides):
    settings = plain(compose("deploy", overrides), resolve=True)
    check(settings, parameters_of(DeployConfig), {})
    if settings.get("model"):
        check_network(settings, parameters_of(DeployConfig), {})


def test_what_is_composed_is_what_is_built():
    overrides = ["data=synthetic", "block=mobileone", "++block.num_conv_branches=2", "seed=3"]
    parts = build_parts(compose("train", [*overrides, "callbacks=early_stopping"]))
    kwargs = parts.description["model"]["kwargs"]
    options = {"num_conv_branches": 2, "use_scale_branch": True, "post_norm": False}
    assert kwargs["block"] == "mobileone"
    assert kwargs["block_options"] == options
    assert (kwargs["num_classes"], kwargs["in_chans"]) == (10, 3)
    assert parts.training.seed == parts.data.seed == 3
    assert isinstance(parts.training.optimizer, OptimizerConfig)
    assert isinstance(parts.training.mix, MixConfig)
    assert [type(callback).__name__ for callback in parts.callbacks] == ["EarlyStopping"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["++model.num_classes=7"], "model.num_classes is 7, but the data has 10. Leave it out"),
        (["++data._target_=builtins.dict"], "data._target_ must be an ImageDataModule, got dict."),
        (["++optimizer.name=sdg"], "Unknown optimizer 'sdg'"),
        (["block=repvgg", "++block.kernel_size=4"], r"kernel_size must be odd .*, got \(4, 4\)"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        build_parts(compose("train", ["data=synthetic", *overrides]))


def test_a_target_that_fails_otherwise_names_its_node():
    with pytest.raises(ConfigurationError, match="data cannot be built: 'x' is an invalid keyword"):
        build_data({"_target_": "builtins.int", "x": "six"})


def test_plain_blocks_start_as_the_branches_that_their_optimizer_stands_for():
    overrides = ["data=synthetic", "block=plain", "optimizer=rep_adamw"]
    scales = ["optimizer.kernel_scale=0.5", "optimizer.identity_scale=7"]
    first, second = (
        build_parts(compose("train", [*overrides, *more])).model.state_dict()
        for more in (scales, [*scales, "optimizer.identity_scale=9"])
    )
    changed = [key for key in first if not torch.equal(first[key], second[key])]
    assert changed == [f"stages.1.{i}.branches.conv.weight" for i in (1, 2)], "the identities"
    difference = second[changed[0]] - first[changed[0]]
    torch.testing.assert_close(difference[:, :, 1, 1], 2 * torch.eye(64))
    parts = build_parts(compose("train", overrides))
    assert isinstance(parts.training.optimizer, RepOptimizerConfig)
