"""Which block stands in which place, and what is refused."""

import inspect
from pathlib import Path

import pytest
import timm
import yaml
from models_nets import FAMILIES, NAMES, OTHER_SIZES, families, images, small

from repblocks.blocks import CONV_BLOCKS, ConvBlock, RepNeXtBlock
from repblocks.blocks._stage import StageBlock
from repblocks.errors import ConfigurationError, UnknownNameError

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


def blocks(model):
    return [m for m in model.modules() if isinstance(m, ConvBlock)]


@pytest.mark.parametrize("family", ["repvgg", "mobileone", "resnet_cifar", "vgg"])
@pytest.mark.parametrize("block", CONV_BLOCKS)
def test_block_fills_every_place(family, block):
    assert {type(b) for b in blocks(small(family, block=block))} == {CONV_BLOCKS[block]}


@pytest.mark.parametrize("family", ["resnet", "mobilenetv1"])
def test_block_leaves_the_pointwise_places(family):
    model = small(family, block="acb")
    sizes = {type(b).__name__: set() for b in blocks(model)}
    for b in blocks(model):
        sizes[type(b).__name__] |= {max(b.shape.kernel_size) > 1}
    assert sizes == {"ACBlock": {True}, "PlainBlock": {False}}


@pytest.mark.parametrize(
    ("family", "places"), [("fastvit", 6), ("repvit", 4), ("repghost", 4), ("repnext_chunk", 2)]
)
def test_block_fills_the_places_outside_of_stage_blocks(family, places):
    model = small(family, block="acb")
    assert sum(type(b) is CONV_BLOCKS["acb"] for b in blocks(model)) == places
    assert model(images()).shape == (4, 5)


def test_block_fills_the_depthwise_place_of_repnext():
    model = small("repnext", block="acb")
    mixers = [m.mixer for m in model.modules() if isinstance(m, RepNeXtBlock)]
    assert len(mixers) == 4
    assert {type(m) for m in mixers} == {CONV_BLOCKS["acb"]}
    assert {m.shape.kernel_size for m in mixers} == {(7, 7)}


@pytest.mark.parametrize("family", ["replknet", "unireplknet", "vanillanet"])
def test_block_fills_the_depthwise_places_of_stage_blocks(family):
    own, model = small(family), small(family, block="acb")
    inside = [b for m in model.modules() if isinstance(m, StageBlock) for b in blocks(m)]
    large = [b for b in inside if max(b.shape.kernel_size) > 1]
    assert {type(b) for b in large} == {CONV_BLOCKS["acb"]}
    assert all(b.shape.is_depthwise for b in large)
    assert len(blocks(own)) == len(blocks(model))
    assert not any(isinstance(b, CONV_BLOCKS["acb"]) for b in blocks(own))


@families
def test_stage_block_is_refused_with_the_names_that_fit(family):
    with pytest.raises(UnknownNameError, match="'repnext'.*acb, .*dbb, .*mobileone, .*repvgg"):
        small(family, block="repnext")


@pytest.mark.parametrize("family", ["repvgg", "mobileone", "repnext", "resnet_cifar"])
def test_kernel_size_goes_to_every_place_larger_than_one(family):
    model = small(family, block="plain", block_options={"kernel_size": 5})
    others = OTHER_SIZES.get(family, set())
    assert {b.shape.kernel_size for b in blocks(model)} == {(5, 5)} | others
    assert model(images()).shape == (4, 5)


@families
def test_even_kernel_size_is_refused_by_the_block(family):
    with pytest.raises(ConfigurationError, match="kernel_size must be odd.*4"):
        small(family, block="repvgg", block_options={"kernel_size": 4})


def test_there_is_a_small_network_of_each_family():
    def modules(names):
        return {timm.models.model_entrypoint(name).__module__ for name in names}

    others = {"repblocks_timm"}  # any network of timm
    assert modules(set(NAMES) - others) == modules(name for name, _ in FAMILIES.values())


@families
def test_unknown_option_of_the_own_block_is_refused(family):
    with pytest.raises(ConfigurationError, match="nonsense"):
        small(family, block_options={"nonsense": 1})


def test_options_of_the_own_block_of_unireplknet():
    options = {"kernel_sizes": (3,), "dilations": (2,)}
    model = small("unireplknet", block_options=options)
    beside = {key.split(".")[-3] for key in model.state_dict() if ".kernels." in key}
    assert beside >= {"large", "k3_d2"}
    assert not beside & {"k5_d1", "k3_d3"}


@families
def test_unknown_block_option_is_refused(family):
    with pytest.raises(UnknownNameError, match="'num_convs'.*Did you mean 'num_conv_branches'"):
        small(family, block="mobileone", block_options={"num_convs": 2})


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("repvgg", {"block_options": {"stride": 2}}, "leave out what the network sets, got stride"),
        ("repvgg", {"block_options": {"se": 0.5}}, "leave out what the network sets, got se"),
        ("repvgg", {"num_classes": -1}, "num_classes must be .* at least 0, got -1"),
        ("repnext", {"num_classes": 2.5}, "num_classes must be .* at least 0, got 2.5"),
        ("mobileone", {"drop_rate": 1.0}, r"drop_rate must be in \[0, 1\), got 1.0"),
        ("repvgg", {"depths": (1, 2, 3)}, r"depths and widths must .* depths=\[1, 2, 3\]"),
        ("repnext", {"dims": (6, 8)}, r"dims=\[6, 8\]"),
        ("resnet_cifar", {"widths": ()}, r"widths=\[\]"),
        ("mobileone", {"se_blocks": (1,)}, r"se_blocks=\[1\]"),
        ("repghost", {"depths": (1, 3)}, r"depths must be from 1 to \[1, 2, 2, 6, 5\].*\[1, 3\]"),
        ("vanillanet", {"pool_to": (6, 4)}, r"a size for each of the 1 stages after.*got \(6, 4\)"),
        ("vanillanet", {"pool_to": 5}, "pool_to must hold a size for each of the 1.*got 5"),
        ("vanillanet", {"pool_to": (0,)}, "pool_to must be a whole number of at least 1.*got 0"),
        ("fastvit", {"head_dim": 5}, "dims must be a multiple of head_dim.*16 channels .* 5"),
    ],
)
def test_arguments_out_of_range_are_refused(family, options, message):
    with pytest.raises(ConfigurationError, match=message):
        small(family, **options)


def test_options_of_the_chunks_are_refused():
    with pytest.raises(ConfigurationError, match=r"block_options needs a block.*'kernel_size': 5"):
        small("repnext", block_options={"kernel_size": 5})


def test_wrong_shortcut_is_refused():
    with pytest.raises(ConfigurationError, match="deploy_shortcut must be one of.*'fold'"):
        small("repnext", deploy_shortcut="fold")


def test_own_block_takes_options_over_its_own():
    def branches(model):
        first = model.stages[0][0].branches
        return sum(name.startswith("kxk") for name in first), sum(
            name.startswith("kxk") for name in model.stem.branches
        )

    assert branches(timm.create_model("repblocks_mobileone_s0")) == (4, 1)
    assert branches(timm.create_model("repblocks_mobileone_s1")) == (1, 1)
    two = timm.create_model("repblocks_mobileone_s1", block_options={"num_conv_branches": 2})
    assert branches(two) == (2, 2)


def test_every_network_has_its_configuration_and_no_other():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")}
    assert {f"repblocks_{stem}" for stem in files} == set(NAMES)
    for stem, config in files.items():
        assert config.pop("_target_") == "timm.create_model"
        assert config.pop("model_name") == f"repblocks_{stem}"
        entry = timm.models.model_entrypoint(f"repblocks_{stem}")
        known = inspect.signature(entry).parameters
        assert set(config) <= set(known), stem
        left = ("${", "???")  # to what the data or the user says
        plain = {k: v for k, v in config.items() if not any(mark in str(v) for mark in left)}
        assert plain == {key: known[key].default for key in plain}, stem
