"""What the tests of networks share: one small network of each family, and counts."""

import pytest
import timm
import torch
from torch import nn

import repblocks.models  # noqa: F401 - registers our networks with timm

NAMES = sorted(timm.list_models("repblocks_*"))
#: One cheap network of each family, with fewer layers where a family has no small variant.
FAMILIES = {
    "repvgg": ("repblocks_repvgg_tiny", {"depths": (1, 2), "widths": (8, 16), "stem_width": 8}),
    "mobileone": (
        "repblocks_mobileone_s4",
        {"depths": (1, 1, 2, 1), "width_factors": (0.25, 0.25, 0.125, 0.0625)},
    ),
    "repnext": ("repblocks_repnext_mini", {"depths": (1, 2, 1), "dims": (6, 8, 12)}),
    "fastvit": (
        "repblocks_fastvit_sa12",
        {"depths": (1, 2), "dims": (8, 16), "head_dim": 8, "mlp_ratio": 2.0},
    ),
    "repvit": (
        "repblocks_repvit_m0_9",
        {"depths": (1, 2), "dims": (8, 16), "distilled": False},
    ),
    "repghost": ("repblocks_repghost_050", {"depths": (1, 2), "drop_rate": 0.0}),
    "repnext_chunk": (
        "repblocks_repnext_chunk_m0",
        {"depths": (1, 1), "width": 8, "distilled": False},
    ),
    "resnet_cifar": ("repblocks_resnet_cifar_20", {"depths": (1, 2, 1), "widths": (8, 12, 16)}),
    "vgg": ("repblocks_vgg_16", {"depths": (1, 2), "widths": (8, 16)}),
    "resnet": ("repblocks_resnet_50", {"depths": (1, 2), "widths": (4, 6), "expansion": 2}),
    "mobilenetv1": (
        "repblocks_mobilenetv1_100",
        {"depths": (1, 2), "widths": (12, 16), "stem_width": 8},
    ),
    "replknet": (
        "repblocks_replknet_31b",
        {"depths": (1, 1), "dims": (6, 8), "kernel_sizes": (7, 5)},
    ),
    "unireplknet": (
        "repblocks_unireplknet_a",
        # With the small scales of the variants nothing of the blocks would be seen.
        {"depths": (1, 2), "dims": (8, 12), "kernel_sizes": ((3,), (7, 3)), "layer_scale": 0.5},
    ),
    "vanillanet": (
        "repblocks_vanillanet_5",
        {"depths": (0, 2), "dims": (8, 12), "act_reach": 1},
    ),
}
#: Kernel sizes of the places that are none for a block.
OTHER_SIZES = {
    "mobileone": {(1, 1)},
    "repnext": {(2, 2)},
    "resnet": {(1, 1)},
    "mobilenetv1": {(1, 1)},
    "replknet": {(1, 1), (3, 3)},
    "unireplknet": {(1, 1)},
}
families = pytest.mark.parametrize("family", FAMILIES)


def small(family, **options):
    name, row = FAMILIES[family]
    settings = {"num_classes": 5, "in_chans": 3, **row, **options}
    torch.manual_seed(0)
    return timm.create_model(name, **settings)


def images(size=16, count=4, channels=3, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator, dtype=dtype)


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def count_macs(model, size, channels=3):
    """Count the multiply-adds of convolutions and linear layers, on the meta device."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        del inputs
        taps = module.weight[0].numel()
        total += taps * output[0].numel()

    hooks = [
        m.register_forward_hook(add)
        for m in model.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        scores = model.to("meta").eval()(torch.zeros(1, channels, size, size, device="meta"))
    assert scores.shape == (1, model.num_classes)
    for hook in hooks:
        hook.remove()
    return total
