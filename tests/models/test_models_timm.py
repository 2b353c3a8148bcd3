"""What timm's tools do with our networks."""

import inspect
import json

import pytest
import timm
import torch
from models_nets import FAMILIES, NAMES, families, images, small
from safetensors.torch import save_file
from torch import nn

from repblocks.blocks import CONV_BLOCKS
from repblocks.models.resnet_cifar import he_normal_

forms = pytest.mark.parametrize("deploy", [False, True])


@families
@forms
def test_features_have_the_sizes_they_state(family, deploy):
    model = small(family, features_only=True, deploy=deploy)
    maps = model(images(size=32))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [32 // m.shape[2] for m in maps] == model.feature_info.reduction()
    last = small(family, features_only=True, deploy=deploy, out_indices=(-1,))
    assert [m.shape for m in last(images(size=32))] == [maps[-1].shape]


@families
def test_features_are_those_of_the_classifier(family):
    whole, features = small(family).eval(), small(family, features_only=True).eval()
    x = images(size=32)
    assert torch.equal(whole.forward_features(x), features(x)[-1])


@families
@forms
def test_image_channels_and_classes(family, deploy):
    model = small(family, in_chans=1, num_classes=3, deploy=deploy)
    assert model(images(channels=1)).shape == (4, 3)
    assert model.num_classes == 3


@families
def test_classifier_is_replaced_and_removed(family):
    model = small(family)
    x = images()
    classifier = model.get_classifier()
    assert getattr(classifier, "linear", classifier).out_features == 5
    model.reset_classifier(8)
    assert model(x).shape == (4, 8)
    pooled = model.eval().forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(x), pooled)
    assert pooled.shape == (4, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).ndim == 4


@families
def test_gradient_checkpointing_changes_no_value(family):
    x, results = images(), []
    for enable in (False, True):
        model = small(family).double()
        model.set_grad_checkpointing(enable)
        y = model(x.double())
        y.square().mean().backward()
        results.append((y.detach(), [p.grad for p in model.parameters()]))
    (y0, grads0), (y1, grads1) = results
    assert torch.equal(y0, y1)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(grads0, grads1, strict=True))


@families
def test_global_pool_and_dropout_reach_the_head(family):
    model = small(family, global_pool="max", drop_rate=0.5)
    assert model.head.global_pool.pool_type == "max"
    assert model.head.drop.p == 0.5


def test_drop_path_rises_with_depth():
    model = small("repnext", depths=(1, 2, 1), drop_path_rate=0.3)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.1, 0.2, 0.3])


def write_artifact(folder, model, name, arguments, channels=3):
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": name,
        "num_classes": 5,
        "model_args": {**arguments, "num_classes": 5, "deploy": True},
        "pretrained_cfg": {
            "num_classes": 5,
            "input_size": [channels, 32, 32],
            "classifier": "head.fc",
            "first_conv": "stem.conv",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))


@families
def test_deployed_weights_load_from_a_folder(family, tmp_path):
    name, row = FAMILIES[family]
    model = small(family, deploy=True).eval()
    write_artifact(tmp_path, model, name, row)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(images()), model(images()))


@families
@forms
def test_weights_are_adapted_to_grey_images(family, deploy, tmp_path):
    name, row = FAMILIES[family]
    model = small(family, deploy=deploy).eval()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    source = {"file": str(tmp_path / "net.pth"), "num_classes": 5}
    options = {**row, "num_classes": 5, "in_chans": 1, "deploy": deploy}
    grey = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **options)
    x = images(channels=1)
    torch.testing.assert_close(grey.eval()(x), model(x.expand(-1, 3, -1, -1)))


def test_damaged_folder_does_not_load(tmp_path):
    name, row = FAMILIES["repvgg"]
    model = small("repvgg", deploy=True)
    del model.stages[0][0].conv
    write_artifact(tmp_path, model, name, row)
    with pytest.raises(RuntimeError, match=r"Missing key.*stages\.0\.0\.conv\.weight"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_entry_point_tells_its_arguments(name):
    known = inspect.signature(timm.models.model_entrypoint(name), eval_str=True).parameters
    assert {"block", "block_options", "in_chans", "num_classes", "deploy", "pretrained"} <= {*known}
    assert all(not isinstance(parameter.annotation, str) for parameter in known.values())
    others = [p for p in known.values() if p.kind is not p.VAR_KEYWORD]
    assert all(parameter.default is not parameter.empty for parameter in others)


@pytest.mark.parametrize(("variant", "start"), [("sa24", 1e-5), ("sa36", 1e-6), ("ma36", 1e-6)])
def test_scales_of_fastvit_start_as_in_the_official_code(variant, start):
    entry = timm.models.model_entrypoint(f"repblocks_fastvit_{variant}")
    assert inspect.signature(entry).parameters["layer_scale"].default == start


def test_first_weights_of_resnet_follow_the_paper():
    resnet = small("resnet_cifar", widths=(16, 32, 64))
    weight = resnet.stages[2][0].conv2.branches.conv.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("family", ["resnet_cifar", "resnet"])
@pytest.mark.parametrize("block", CONV_BLOCKS)
def test_the_factors_of_one_kernel_start_in_their_own_way(family, block):
    model = small(family, block=block)
    kept = [m for m in model.modules() if isinstance(m, CONV_BLOCKS[block])]
    before = [{k: v.clone() for k, v in m.named_parameters()} for m in kept]
    he_normal_(model)
    is_same = all(
        torch.equal(old[key], value)
        for module, old in zip(kept, before, strict=True)
        for key, value in module.named_parameters()
        if module.shape.kernel_size != (1, 1)  # which some leave as one convolution
    )
    assert is_same == (block in ("conv3xc", "do_conv", "ecb", "expand_conv", "orepa"))


@pytest.mark.parametrize("family", ["resnet_cifar", "resnet"])
def test_scale_of_the_first_weights_reaches_the_network(family):
    usual, tiny = (
        small(family, block="orepa", block_options={"weight_scale": scale}) for scale in (1, 0.01)
    )
    pairs = zip(usual.named_parameters(), tiny.parameters(), strict=True)
    ratios = [(b.std() / a.std()).item() for (name, a), b in pairs if ".origin.step0." in name]
    assert ratios == pytest.approx([0.01] * len(ratios))
    assert ratios


def test_branches_that_start_from_zero_stay_there():
    model = small("resnet_cifar", block="dbb")
    deltas = [p for name, p in model.named_parameters() if ".delta." in name]
    assert deltas
    assert not any(delta.any() for delta in deltas)
