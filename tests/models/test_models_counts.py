"""Parameters and multiply-adds of both forms, against timm's networks or a closed formula."""

import re

import pytest
import timm
import torch
from models_nets import NAMES, count_macs, count_parameters
from timm.models import reparameterize_model
from timm.models.repvit import RepVit
from torch import nn

PEERS = {
    name: peer
    for name in NAMES
    if timm.is_model(peer := name.removeprefix("repblocks_").replace("repghost_", "repghostnet_"))
}
CHEAP = {
    *("repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9", "repvit_m1", "repghostnet_050"),
    "mobilenetv1_100",
}
MORE = {"fastvit_sa12", "repghostnet_111"}


def counts(model, size=224, channels=3):
    return count_parameters(model), count_macs(model, size, channels)


def meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


@pytest.mark.parametrize("deploy", [False, True])
def test_repvit_m0_6_counts_as_timms_class_of_its_shape(deploy):
    peer = RepVit(embed_dim=(40, 80, 160, 320), depth=(1, 1, 8, 1), distillation=True)
    peer = reparameterize_model(peer.eval(), inplace=True) if deploy else peer
    found = counts(meta("repblocks_repvit_m0_6", deploy=deploy))
    assert found == counts(peer)
    # What the README of the chunked RepNeXt measured, of one classifier: 2.5 M, 0.39 G.
    single = counts(meta("repblocks_repvit_m0_6", deploy=True, distilled=False))
    assert [round(single[0] / 1e6, 1), round(single[1] / 1e9, 2)] == [2.5, 0.39]


def test_timm_has_a_peer_of_each_published_network():
    # 11 RepVGG, 5 MobileOne, 7 FastViT, 8 RepViT, 8 RepGhostNet, MobileNetV1
    assert len(PEERS) == 40


def peers(*cheap):
    slow = pytest.mark.slow
    rows = [(n, p) if p in cheap else pytest.param(n, p, marks=slow) for n, p in PEERS.items()]
    return pytest.mark.parametrize(("name", "peer"), rows)


@peers(*CHEAP, *MORE)
def test_training_form_counts_as_timms(name, peer):
    assert counts(meta(name)) == counts(meta(peer))


@peers(*CHEAP)
def test_deployed_form_counts_as_timms(name, peer):
    ours = meta(name, deploy=True)
    theirs = reparameterize_model(timm.create_model(peer).eval(), inplace=True)
    # What timm keeps and we fold: a BatchNorm after a convolution, two parameters a channel for
    # one; the scale of a path; and a BatchNorm in front of attention, which had no bias: two
    # parameters a channel for three.
    kept = 0
    for path, module in theirs.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            is_of_attention = re.search(r"blocks\.\d+\.norm$", path)
            kept += -module.num_features if is_of_attention else module.num_features
        kept += module.gamma.numel() if type(module).__name__ == "LayerScale2d" else 0
    assert (kept > 0) == any(family in name for family in ("fastvit", "repghost", "mobilenetv1"))
    parameters, macs = counts(theirs)
    assert counts(ours) == (parameters - kept, macs)


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("m0", 2.3), ("m1", 4.8), ("m2", 6.5), ("m3", 7.8), ("m4", 13.3), ("m5", 21.7)],
)
def test_repnext_chunk_has_the_published_size(variant, millions):
    # Table 1 of the paper, deployed.
    model = meta(f"repblocks_repnext_chunk_{variant}", deploy=True)
    assert round(count_parameters(model) / 1e6, 1) == millions


@pytest.mark.parametrize("deployed", [False, True])
def test_repnext_chunk_counts_as_its_formula(deployed):
    width, depths, classes, size = 40, (2, 2, 9, 1), 1000, 224 // 4
    norm = 1 if deployed else 2  # parameters a channel after a convolution: a bias, or a BatchNorm
    half = width // 2
    parameters = 9 * 3 * half + norm * half + 9 * half * width + norm * width
    macs = 4 * size**2 * 9 * 3 * half + size**2 * 9 * half * width

    def mixer(c):
        return 4 * c**2 + norm * 3 * c, 4 * c**2

    def kernels(c):
        small = 9 if deployed else 9 + (3 + 3) + 4
        large = 49 if deployed else 49 + 15 + 15 + 7 + 7 + 5 + 5
        return c * small, c * large

    for i, depth in enumerate(depths):
        c = width * 2**i
        if i:
            before = c // 2
            own = sum(kernels(before))
            size //= 2
            # The first kernel of a series keeps the rows that the second one leaves out.
            rows = 0 if deployed else before * (3 + 7 + 5)
            macs += size**2 * (own + rows)
            parameters += own + norm * c
            parameters += mixer(c)[0]
            macs += size**2 * mixer(c)[1]
        quarter = c // 4
        own = sum(kernels(quarter)) + quarter * 22
        parameters += depth * (own + 2 * quarter + (0 if deployed else 2 * c) + mixer(c)[0])
        macs += depth * size**2 * (own + mixer(c)[1])
    heads = 1 if deployed else 2
    parameters += heads * (c + 1) * classes + (0 if deployed else 4 * c)
    macs += heads * c * classes
    assert counts(meta("repblocks_repnext_chunk_m0", deploy=deployed)) == (parameters, macs)


def repvgg(layers, classes, size, deployed, groups=1, se=None):
    """3 x 3, in the training form 1 x 1 too, each with BatchNorm; identity BatchNorm.

    Every second layer after the first has groups; ``se`` is a divisor of the channels.
    """
    parameters = macs = 0
    for i, (c_in, c_out, stride) in enumerate(layers):
        size = -(-size // stride)
        weights = c_in * c_out * (9 if deployed else 9 + 1) // (1 if i % 2 else groups if i else 1)
        macs += size**2 * weights
        parameters += weights
        parameters += c_out if deployed else 4 * c_out + 2 * c_out * (c_in == c_out and stride == 1)
        if se:
            hidden = c_out // se
            parameters += 2 * c_out * hidden + hidden + c_out
            macs += 2 * c_out * hidden
    return parameters + (c_out + 1) * classes, macs + c_out * classes


def repvgg_tiny(classes, channels, size, deployed):
    layers = [(channels, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 1), (64, 64, 1), (64, 128, 2)]
    return repvgg(layers, classes, size, deployed)


def repvgg_layers(depths, widths):
    layers = [(3, 64, 2)]
    for depth, width in zip(depths, widths, strict=True):
        layers += [(layers[-1][1], width, 2)] + [(width, width, 1)] * (depth - 1)
    return layers


def repnext(depths, dims, patch, classes, channels, size, deployed, expand=False):
    """A position of a block costs 8C² + 49C deployed, 15C² + 98C with the shortcut folded in."""
    size //= patch
    parameters = channels * patch**2 * dims[0] + dims[0] * (1 if deployed else 2)
    macs = size**2 * channels * patch**2 * dims[0]
    before = dims[0]
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        if i:
            size //= 2
            parameters += 4 * before * dim + dim + (0 if deployed else 2 * before)
            macs += size**2 * 4 * before * dim
        third, rest = divmod(dim, 3)
        chunks = [third + (j < rest) for j in range(3)]
        chunked = sum(k**2 * c for k, c in zip((7, 5, 3), chunks, strict=True))
        if not deployed:
            block = (chunked + 2 * dim + 8 * dim**2 + 5 * dim, chunked + 8 * dim**2)
        elif expand:
            block = (98 * dim + 2 * dim + 15 * dim**2 + 6 * dim, 98 * dim + 15 * dim**2)
        else:
            block = (49 * dim + dim + 8 * dim**2 + 5 * dim, 49 * dim + 8 * dim**2)
        parameters += depth * block[0]
        macs += depth * size**2 * block[1]
        before = dim
    return parameters + (before + 1) * classes, macs + before * classes


def resnet_cifar(depth, classes, size, deployed):
    """3 x 3 convolutions only: shortcuts have no parameter."""
    layers = [(3, 16, 1)]
    for c_in, c_out in ((16, 16), (16, 32), (32, 64)):
        layers.append((c_in, c_out, 1 if c_in == c_out else 2))
        layers += [(c_out, c_out, 1)] * (2 * depth - 1)
    parameters = macs = 0
    for c_in, c_out, stride in layers:
        size //= stride
        macs += size**2 * 9 * c_in * c_out
        parameters += 9 * c_in * c_out + c_out * (1 if deployed else 2)
    return parameters + 65 * classes, macs + 64 * classes


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_repvgg_tiny_counts_as_its_formula(deployed, channels, size):
    model = timm.create_model(
        "repblocks_repvgg_tiny", num_classes=10, in_chans=channels, deploy=deployed
    )
    expected = repvgg_tiny(10, channels, size, deployed)
    assert counts(model, size, channels) == expected
    assert expected[0] <= 600_000


REPVGG = {
    "b1g2": ((4, 6, 16, 1), (128, 256, 512, 2048), {"groups": 2}),
    "b2g2": ((4, 6, 16, 1), (160, 320, 640, 2560), {"groups": 2}),
    "b3g2": ((4, 6, 16, 1), (192, 384, 768, 2560), {"groups": 2}),
    "l2pse": ((8, 14, 24, 1), (160, 320, 640, 2560), {"se": 4}),
}


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("variant", REPVGG)
def test_repvgg_without_a_peer_counts_as_its_formula(variant, deployed):
    depths, widths, options = REPVGG[variant]
    found = counts(meta(f"repblocks_repvgg_{variant}", deploy=deployed, auxiliary=False))
    assert found == repvgg(repvgg_layers(depths, widths), 1000, 224, deployed, **options)


def test_the_formula_is_that_of_the_networks_which_have_a_peer():
    row = (repvgg_layers(*REPVGG["b1g2"][:2]), 1000, 224)
    assert counts(meta("repvgg_b1g4")) == repvgg(*row, False, groups=4)


def test_repvgg_tiny_is_cheap_enough_to_train_on_a_cpu():
    assert 5e6 <= repvgg_tiny(10, 1, 28, deployed=True)[1] <= 8e6


REPNEXT = {
    "mini": ((2, 2, 2), (48, 96, 192), 2, 32),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768), 4, 224),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768), 4, 224),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024), 4, 224),
}


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        pytest.param(v, f, marks=[pytest.mark.slow] if v in ("small", "base") and i else [])
        for v in REPNEXT
        for i, f in enumerate(("training", "add", "expand"))
    ],
)
def test_repnext_counts_as_its_formula(variant, form):
    depths, dims, patch, size = REPNEXT[variant]
    options = {"deploy": True, "deploy_shortcut": form} if form != "training" else {}
    model = meta(f"repblocks_repnext_{variant}", num_classes=10, **options)
    deployed = form != "training"
    assert counts(model, size) == repnext(
        depths, dims, patch, 10, 3, size, deployed, form == "expand"
    )


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize(("variant", "depth"), [("8", 1), ("20", 3), ("56", 9)])
def test_resnet_cifar_counts_as_its_formula(variant, depth, deployed):
    model = timm.create_model(f"repblocks_resnet_cifar_{variant}", num_classes=10, deploy=deployed)
    assert counts(model, 32) == resnet_cifar(depth, 10, 32, deployed)


def test_resnet_cifar_has_the_published_size():
    # Table 6 of the paper: 0.27 M and 0.85 M.
    assert [round(resnet_cifar(n, 10, 32, False)[0] / 1e6, 2) for n in (3, 9)] == [0.27, 0.85]
