"""Published weights in our networks: the same logits as the network of timm that they come from."""

import argparse
import re

import pytest
import timm
import torch
from models_nets import images, norms, small
from official_nets import assert_same_scores
from safetensors.torch import save_file
from timm.utils import reparameterize_model
from torch import nn
from truth import calibrate, relative_error

from repblocks import fold_blocks, load_official
from repblocks.errors import CheckpointError, ConfigurationError

#: Our networks: timm's name, the size of images that they are compared on, and what makes timm's
#: and ours a small one.
PEERS = {
    "repvgg_a0": ("repvgg_a0", 32, {}, {}),
    "mobileone_s0": ("mobileone_s0", 32, {}, {}),
    "mobileone_s4": ("mobileone_s4", 32, {}, {}),
    "fastvit_sa12": (
        "fastvit_sa12",
        64,
        {"layers": (1, 1, 2, 1), "embed_dims": (16, 16, 32, 64)},
        {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 64)},
    ),
    "repvit_m0_9": (
        "repvit_m0_9",
        32,
        {"depth": (1, 3), "embed_dim": (16, 32)},
        {"depths": (1, 3), "dims": (16, 32)},
    ),
    "repvit_m1": (
        "repvit_m1",
        32,
        {"depth": (1, 3), "embed_dim": (16, 32)},
        {"depths": (1, 3), "dims": (16, 32)},
    ),
    "repghost_050": ("repghostnet_050", 32, {}, {}),
}
#: The same of plain blocks, which timm does not deploy.
PLAIN = {
    "resnet_18": ("resnet18", 32, {}, {}),
    "resnet_50": ("resnet50", 32, {}, {}),
    "mobilenetv1_100": ("mobilenetv1_100", 32, {}, {}),
}
ALL = {**PEERS, **PLAIN}


def theirs(name):
    """A network of timm with random weights and perturbed statistics, and a size of images."""
    peer, size, options, _ = ALL[name]
    torch.manual_seed(0)
    model = timm.create_model(peer, num_classes=5, **options).double()
    for norm in norms(model):  # timm starts some from 0 or close to it, which kills the signal
        nn.init.uniform_(norm.weight, 0.7, 1.3)
    for key, parameter in model.named_parameters():
        if "layer_scale" in key:
            nn.init.uniform_(parameter, 0.3, 0.9)
    return calibrate(model, images(size, 4, dtype=torch.float64)), size


def ours(name, **options):
    torch.manual_seed(1)
    options = {"num_classes": 5, **ALL[name][3], **options}
    return timm.create_model(f"repblocks_{name}", **options).double().eval()


def assert_same(found, truth, size, tolerance=1e-10):
    assert_same_scores(found, truth, images(size, 3, dtype=torch.float64, seed=9), tolerance)


@pytest.mark.parametrize("name", PEERS)
def test_weights_of_timm_give_the_logits_of_timm(name):
    (peer, size), model, folded = theirs(name), ours(name), ours(name, deploy=True)
    load_official(model, peer.state_dict())
    assert_same(model, peer, size)
    load_official(folded, peer.state_dict())
    assert not norms(folded)
    assert_same(folded, peer, size)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_weights_of_timm_give_the_logits_of_timm(name):
    (peer, size), model, folded = theirs(name), ours(name), ours(name, deploy=True)
    load_official(model, peer.state_dict())
    assert_same(model, peer, size)
    load_official(folded, peer.state_dict())
    assert not norms(folded)
    assert_same(folded, peer, size)


@pytest.mark.parametrize("name", PEERS)
def test_deployed_weights_of_timm_give_the_logits_of_timm(name):
    (peer, size), model, folded = theirs(name), ours(name), ours(name, deploy=True)
    truth = reparameterize_model(peer).double()  # RepViT's fold gives single precision
    deployed = truth.state_dict()
    assert deployed.keys() != peer.state_dict().keys()
    load_official(folded, deployed)
    assert_same(folded, truth, size)
    load_official(model, deployed)
    assert_same(model, truth, size, 1e-9)
    assert_same(fold_blocks(model)[0], truth, size, 1e-9)


def in_other_words(name, state):
    """The names of the official code and of OpenMMLab, for a state of ours."""
    words = {
        "repvgg official": [
            (r"\.branches\.kxk\.", ".rbr_dense."),
            (r"\.branches\.pointwise\.", ".rbr_1x1."),
            (r"\.branches\.identity\.norm\.", ".rbr_identity."),
            (r"\.norm\.", ".bn."),
            (r"^(stem|stages\.\d+\.\d+)\.conv\.", r"\1.rbr_reparam."),
            (r"\.tail\.se\.reduce\.", ".se.down."),
            (r"\.tail\.se\.expand\.", ".se.up."),
            (r"^head\.fc\.", "linear."),
            (r"^stem\.", "stage0."),
            (r"^stages\.(\d+)\.", lambda m: f"stage{int(m[1]) + 1}."),
        ],
        "repvgg openmmlab": [
            (r"\.branches\.kxk\.", ".branch_3x3."),
            (r"\.branches\.pointwise\.", ".branch_1x1."),
            (r"\.branches\.identity\.norm\.", ".branch_norm."),
            (r"^(stem|stages\.\d+\.\d+)\.conv\.", r"\1.branch_reparam."),
            (r"\.tail\.se\.reduce\.", ".se_layer.conv1.conv."),
            (r"\.tail\.se\.expand\.", ".se_layer.conv2.conv."),
            (r"^stages\.(\d+)\.", lambda m: f"stage_{int(m[1]) + 1}."),
            (r"^(?!head)", "backbone."),
        ],
        "mobileone official": [
            (r"\.branches\.kxk(\d+)\.", r".rbr_conv.\1."),
            (r"\.branches\.scale\.", ".rbr_scale."),
            (r"\.branches\.identity\.norm\.", ".rbr_skip."),
            (r"\.norm\.", ".bn."),
            (r"^(stem|stages\.\d+\.\d+)\.conv\.", r"\1.reparam_conv."),
            (r"\.tail\.se\.", ".se."),
            (r"^head\.fc\.", "linear."),
            (r"^stem\.", "stage0."),
            (r"^stages\.(\d+)\.", lambda m: f"stage{int(m[1]) + 1}."),
        ],
        "mobileone openmmlab": [
            (r"\.branches\.kxk(\d+)\.", r".branch_conv_list.\1."),
            (r"\.branches\.scale\.", ".branch_scale."),
            (r"\.branches\.identity\.norm\.", ".branch_norm."),
            (r"^(stem|stages\.\d+\.\d+)\.conv\.", r"\1.branch_reparam."),
            (r"\.tail\.se\.reduce\.", ".se.conv1.conv."),
            (r"\.tail\.se\.expand\.", ".se.conv2.conv."),
            (r"^stem\.", "stage0."),
            (r"^stages\.(\d+)\.", lambda m: f"stage{int(m[1]) + 1}."),
            (r"^(?!head)", "backbone."),
        ],
    }
    found = {}
    for key, value in state.items():
        for pattern, replacement in words[name]:
            key = re.sub(pattern, replacement, key)  # noqa: PLW2901
        found[key] = value
    assert len(found) == len(state)
    assert not found.keys() & (state.keys() - {"head.fc.weight", "head.fc.bias"})
    return found


def trained(family, **options):
    torch.manual_seed(3)
    model = small(family, **options).double()
    return calibrate(model, *(images(dtype=torch.float64, count=8, seed=i) for i in range(2)))


NETS, SOURCES = ("repvgg", "mobileone"), ("official", "openmmlab")
LAYOUTS = [f"{net} {source}" for net in NETS for source in SOURCES]
SE = {"repvgg": {"se": 0.25}, "mobileone": {}}
forms = pytest.mark.parametrize("deployed_network", [False, True])


@forms
@pytest.mark.parametrize("deployed_file", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts(layout, deployed_file, deployed_network):
    family = layout.split()[0]
    truth = trained(family, **SE[family])
    source = fold_blocks(truth)[0] if deployed_file else truth
    model = small(family, deploy=deployed_network, **SE[family]).double().eval()
    load_official(model, in_other_words(layout, source.state_dict()))
    assert_same(model, truth, 16, 1e-9 if deployed_file else 1e-10)


def test_layout_of_repvgg_plus():
    options = {"depths": (1, 1, 4, 1), "widths": (8, 8, 16, 16), "own_block": "repvgg_plus"}
    truth = trained("repvgg", **options)
    state = {}
    for key, value in in_other_words("repvgg official", truth.state_dict()).items():
        new = re.sub(r"^stage([124])\.", r"stage\1.blocks.", key)
        new = re.sub(r"^stage3\.([01])\.", r"stage3_first.blocks.\1.", new)
        new = re.sub(r"^stage3\.(\d)\.", lambda m: f"stage3_second.blocks.{int(m[1]) - 2}.", new)
        state[new.replace(".se.", ".post_se.")] = value
    state["stage1_aux.3.weight"] = torch.zeros(5, 8)  # it guides the training of the official one
    model = small("repvgg", **options).double().eval()
    load_official(model, state)
    assert_same(model, truth, 16)


WRAPPED = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "averaged before plain": lambda s: {"model": {"x": torch.ones(1)}, "model_ema": s},
    "basicsr": lambda s: {"params": {"x": torch.ones(1)}, "params_ema": s},
    "basicsr without averages": lambda s: {"params": s},
    "averaged": lambda s: {"state_dict": {"x": torch.ones(1)}, "ema_state_dict": s},
    "averages of openmmlab": lambda s: {
        "state_dict": s,
        "ema_state_dict": {"steps": torch.tensor(7), "module.x": torch.ones(1)},
    },
    "no averages": lambda s: {"model_state_dict": s, "ema_state_dict": None},
    "net": lambda s: {"net": s, "acc": 93.1, "epoch": 9},
    "options beside": lambda s: {"params": {"lr": 0.1}, "model_ema": {"decay": 0.9}, "net": s},
    "averages in a wrapper": lambda s: {"model": {"x": torch.ones(1)}, "ema": {"state_dict": s}},
    "weights": lambda s: {"weights": s, "optimizer": {"state": {}}},
    "module": lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}},
    "compiled": lambda s: {f"_orig_mod.module.{key}": value for key, value in s.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_and_prefixes_are_taken_off(wrapper, tmp_path):
    truth = trained("repvgg")
    state = in_other_words("repvgg official", truth.state_dict())
    torch.save(WRAPPED[wrapper](state), tmp_path / "net.pth")
    for checkpoint in (tmp_path / "net.pth", WRAPPED[wrapper](state)):
        model = small("repvgg").double().eval()
        load_official(model, checkpoint)
        assert_same(model, truth, 16)


def test_safetensors_and_files_without_counters(tmp_path):
    truth = trained("repvgg")
    state = in_other_words("repvgg official", truth.state_dict())
    kept = {k: v.contiguous() for k, v in state.items() if "num_batches" not in k}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / "net.safetensors")
    model = small("repvgg").double().eval()
    load_official(model, str(tmp_path / "net.safetensors"))
    assert_same(model, truth, 16)


def test_own_weights_are_folded_into_a_deployed_network():
    truth = trained("repnext")
    model = small("repnext", deploy=True).double().eval()
    load_official(model, truth.state_dict())
    assert_same(model, truth, 16)


@forms
def test_a_weight_more_and_a_weight_less_are_named(deployed_network):
    state = in_other_words("repvgg official", trained("repvgg").state_dict())
    state["stage9.rbr_dense.conv.weight"] = state.pop("stage1.0.rbr_dense.conv.weight")
    model = small("repvgg", deploy=deployed_network).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = (
        r"1 left over: stages\.8\.branches\.kxk\.conv\.weight\. "
        r"1 missing: stages\.0\.0\.branches\.kxk\.conv\.weight\. Build"
    )
    with pytest.raises(CheckpointError, match=message):
        load_official(model, state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_another_number_of_classes_is_named():
    state = trained("repvgg").state_dict()
    with pytest.raises(CheckpointError, match=r"head\.fc\.weight \(5, 16\) instead of \(7, 16\)"):
        load_official(small("repvgg", num_classes=7), state)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "got nothing"),
        ({"a": 1, "b": torch.ones(1)}, "got a, which are no tensors"),
        ({0: torch.ones(1)}, "got 0, which are no tensors"),
        (
            {"generator": {"a": torch.ones(1)}, "epoch": 3},
            "got generator, epoch, which are no tensors. There are tensors under generator: give",
        ),
        ([1, 2], r"or have one under state_dict_ema, .*weights; got a value of the type list"),
        (torch.ones(2, 3), r"must be a state dict.* got one tensor of the shape \(2, 3\)"),
        (None, "must be a state dict.* got None"),
        ({"stem.conv.weight": torch.ones(1), "stem.rbr_reparam.weight": torch.ones(1)}, "Two"),
        ("nowhere.pth", "cannot be read from nowhere.pth: .*No such file"),
        ("nowhere.safetensors", "cannot be read from nowhere.safetensors: .*No such file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(checkpoint, message):
    with pytest.raises(CheckpointError, match=message):
        load_official(small("repvgg"), checkpoint)


@pytest.mark.parametrize(
    ("held", "found"),
    [([torch.ones(1)], "a value of the type list"), (torch.ones(3), "one tensor"), (None, "None")],
)
def test_a_file_that_holds_no_checkpoint_is_refused(held, found, tmp_path):
    torch.save(held, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=f"must be a state dict, .* got {found}"):
        load_official(small("repvgg"), tmp_path / "net.pth")


def test_code_in_a_file_does_not_run(tmp_path):
    torch.save({"state_dict": nn.Linear(2, 2)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="cannot be read .*Weights only load failed"):
        load_official(small("repvgg"), tmp_path / "net.pth")


def test_networks_of_others_are_refused():
    with pytest.raises(ConfigurationError, match="model must be a network of repblocks, got Lin"):
        load_official(nn.Linear(2, 2), {})


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", ["mobileone_s0", "repvit_m0_9"])
def test_pretrained_weights_of_timm_take_the_same_way(name, deploy, tmp_path):
    peer = theirs(name)[0].float()
    torch.save(peer.state_dict(), tmp_path / "net.pth")
    source = {"file": str(tmp_path / "net.pth"), "num_classes": 5}
    options = {"pretrained": True, "pretrained_cfg_overlay": source, "deploy": deploy}
    model = ours(name, **options)
    assert_same(model, peer.double(), 32, 1e-4 if deploy else 1e-10)
    other = ours(name, **{**options, "num_classes": 3, "in_chans": 1}).float()
    x = images(32, channels=1, dtype=torch.float64)
    with torch.no_grad():
        assert other(x.float()).shape == (4, 3)
        features = other.double().forward_features(x)
        wanted = peer.forward_features(x.expand(-1, 3, -1, -1))
        assert relative_error(features, wanted) < 1e-4


def test_timm_knows_where_the_weights_are():
    known = timm.models.get_pretrained_cfg("repblocks_repvgg_a0")
    own = timm.models.get_pretrained_cfg("repvgg_a0")
    assert own.hf_hub_id
    assert (known.hf_hub_id, known.tag, known.mean) == (own.hf_hub_id, own.tag, own.mean)
    assert known.classifier == "head.fc"
    assert not timm.models.get_pretrained_cfg("repblocks_repnext_tiny").has_weights
