"""A tiny network of real blocks that timm can build by name, and a checkpoint of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from repblocks.blocks import create_block
from repblocks.folding.switch import switch_blocks

NAME = "deployment_test_net"
#: The files of every artifact, beside those of its forms.
ALWAYS = ("manifest.json", "report.html", "report.json", "report.md")
KWARGS = {"num_classes": 7, "in_chans": 3, "block": "repvgg", "block_options": {}}
PREPROCESSING = {
    "input_size": [3, 12, 12],
    "in_channels": 3,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.25],
}
default_cfgs = generate_default_cfgs({NAME: {"classifier": "head"}})
CLASS_NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
DESCRIPTION = {
    "model": {"name": NAME, "kwargs": KWARGS},
    "preprocessing": PREPROCESSING,
    "class_names": CLASS_NAMES,
}


class Net(nn.Module):
    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        block: str,
        block_options: dict[str, Any],
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = 8
        self.body = nn.Sequential(
            create_block(block, in_chans, 8, 3, stride=2, **block_options),
            create_block(block, 8, 8, 3, **block_options),
        )
        self.head = nn.Linear(8, num_classes)
        if deploy:
            self.eval()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "RepVGGBlock is folded with BatchNorm")
                switch_blocks(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@register_model
def deployment_test_net(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(Net, NAME, pretrained, **kwargs)


def trained_net(seed: int = 0) -> nn.Module:
    """A network whose statistics are those of random images, then perturbed."""
    torch.manual_seed(seed)
    model = timm.create_model(NAME, **KWARGS)
    for _ in range(10):
        model(torch.randn(8, 3, 12, 12))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= torch.rand_like(module.running_var) + 0.5
            nn.init.normal_(module.bias)
    return model.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randn(16, 3, 12, 12, generator=generator),
            torch.randint(7, (16,), generator=generator),
        )
        for _ in range(3)
    ]


def write_checkpoint(path: Path, network: nn.Module, **changes: Any) -> Path:
    """Write what training writes; ``changes`` go over the description."""
    about = {
        "format": 1,
        "config": {},
        "versions": {},
        "git_commit": None,
        **DESCRIPTION,
        "class_names": list(CLASS_NAMES),
        **changes,
    }
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "repblocks": about}, path)
    return path
