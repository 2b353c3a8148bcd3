"""The official layout of the chunked RepNeXt, as it is trained and fused."""

import copy
import re

import pytest
import torch
from models_nets import images, small
from official_nets import assert_same_scores
from truth import calibrate

from repblocks import load_official
from repblocks.blocks import AveragedHeads, ConvBlock


def trained(family, **options):
    torch.manual_seed(3)
    model = small(family, **options).double()
    return calibrate(model, *(images(dtype=torch.float64, count=8, seed=i) for i in range(2)))


def assert_same(found, truth):
    assert_same_scores(found, truth, images(16, 3, dtype=torch.float64, seed=9))


def fused(model):
    """A copy with each kernel and the classifier deployed, while the norms between them stay."""
    model = copy.deepcopy(model)
    for block in model.modules():
        if isinstance(block, (ConvBlock, AveragedHeads)):
            block.switch_to_deploy()
    return model


@pytest.mark.parametrize("is_fused", [False, True])
def test_layout_of_the_chunked_repnext(is_fused):
    options = {"depths": (1, 1), "width": 8, "distilled": True}
    truth = trained("repnext_chunk", **options, num_classes=5).eval()
    wanted = truth
    truth = fused(truth) if is_fused else truth
    rules = [
        (r"(stem\.conv2?|\.mixed|\.pw[12]\.conv)\.conv\.", r"\1.branches."),
        (r"^stem\.conv\.branches\.", "stem.stem.0."),
        (r"^stem\.conv2\.branches\.", "stem.stem.2."),
        (r"\.chunks\.1\.mixed\.branches\.", ".token_mixer.conv_s."),
        (r"\.chunks\.2\.mixed\.branches\.", ".token_mixer.conv_m."),
        (r"\.chunks\.3\.axis1\.conv\.", ".token_mixer.conv_l.0."),
        (r"\.chunks\.3\.axis0\.conv\.", ".token_mixer.conv_l.1."),
        (r"\.copied\.small\.mixed\.branches\.", ".token_mixer.conv_s."),
        (r"\.copied\.large\.mixed\.branches\.", ".token_mixer.conv_m."),
        (r"conv_s\.square\.conv\.", "conv_s.conv_3_3."),
        (r"conv_m\.square\.conv\.", "conv_m.conv_7_7."),
        (r"\.corners\.conv\.", ".conv_2_2."),
        (r"\.1x3\.conv\.", ".conv_3_w."),
        (r"\.3x1\.conv\.", ".conv_3_h."),
        (r"\.(\d)x(\d)\.conv\.", r".conv_\1_\2."),
        (r"\.series(\d)\.axis1\.conv\.", r".conv_\1_w."),
        (r"\.series(\d)\.axis0\.conv\.", r".conv_\1_h."),
        (r"\.pw1\.norm_before\.", ".norm."),
        (r"(\.downsample)\.mixer\.", r"\1."),
        (r"\.pw1\.conv\.branches\.", ".channel_mixer.0."),
        (r"\.pw2\.conv\.branches\.", ".channel_mixer.2."),
        (r"^head\.fc\.heads\.0\.", "head.head."),
        (r"^head\.fc\.heads\.1\.", "head.head_dist."),
        (r"^head\.fc\.linear\.", "head."),
    ]
    state, halves = {}, {}
    for key, value in truth.state_dict().items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)  # noqa: PLW2901
        if ".copied." in key:
            halves.setdefault(re.sub(r"copied\.\w+\.", "", key), []).append(value)
        else:
            state[key] = value
    state |= {k: torch.cat(v) if v[0].ndim else v[0] for k, v in halves.items()}
    # A bias of each kernel in front of the norm, which takes it away again.
    for block, kernel, chunk in (
        ("stages.0.blocks.0", "conv_s.conv_2_2", slice(2, 4)),
        ("stages.1.blocks.0", "conv_m.conv_5_3", slice(8, 12)),
        ("stages.1.downsample", "conv_m.conv_7_7", slice(8, 16)),
    ):
        bias = torch.rand(chunk.stop - chunk.start, dtype=torch.float64)
        key = f"{block}.token_mixer.{kernel.partition('.')[0] if is_fused else kernel}.bias"
        state[key] = state.get(key, 0) + bias
        mean = state[f"{block}.norm.running_mean"].clone()
        mean[chunk] += bias
        state[f"{block}.norm.running_mean"] = mean
    for deploy in (False, True):
        model = small("repnext_chunk", **options, deploy=deploy).double().eval()
        load_official(model, state)
        assert_same(model, wanted)
