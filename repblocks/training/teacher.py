"""The teacher of a distillation: any network of timm with its weights, or a run of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.task.distillation import DistillationTeacher
from torch import Tensor, nn

import repblocks.models  # noqa: F401 - a teacher may be one of our networks
from repblocks.data import ImageDataModule
from repblocks.errors import CheckpointError, ConfigurationError, UnknownNameError
from repblocks.training.checkpoint import load_weights, read_checkpoint
from repblocks.training.config import DistillationConfig


class Teacher:
    """Scores of a network that does not learn, for images that were prepared for another one.

    It is no module, so that it is neither trained nor part of a checkpoint.

    Args:
        model: Maps images ``(N, C, H, W)`` to scores.
        mean: Of the images as they come, for each channel.
        std: The same.
        own: The ``mean`` and ``std`` that the network wants.
    """

    def __init__(
        self, model: nn.Module, mean: list[float], std: list[float], own: Mapping[str, Any]
    ) -> None:
        model.pretrained_cfg = dict(own)  # type: ignore[assignment] # a plain attribute
        self.network = DistillationTeacher(model).requires_grad_(False)
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))

    def to(self, device: torch.device) -> None:
        """Move it, in place."""
        self.network.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Give the scores ``(N, num_classes)``."""
        self.network.eval()
        scores: Tensor = self.network(self.network.normalize_input(images, self.mean, self.std))
        return scores


def build_teacher(config: DistillationConfig, data: ImageDataModule) -> Teacher | None:
    """Build the teacher, if there is to be one.

    Args:
        config: Says which; its weights are downloaded where they are timm's own.
        data: What is learnt.

    Raises:
        UnknownNameError: if timm has no such network.
        ConfigurationError: if it has no weights, or was trained for other images or classes.
        CheckpointError: if the weights cannot be read.
    """
    if config.teacher is None:
        return None
    if config.teacher.endswith(".ckpt"):
        model, own = _of_run(config.teacher, data)
    else:
        model, own = _of_timm(config, data)
    now = data.preprocessing
    return Teacher(model, now["mean"], now["std"], own)


def _of_run(path: str, data: ImageDataModule) -> tuple[nn.Module, Mapping[str, Any]]:
    checkpoint = read_checkpoint(path)
    if checkpoint.class_names != tuple(data.class_names):
        raise ConfigurationError(
            f"The teacher {path} knows {len(checkpoint.class_names)} classes, and the data has "
            f"{data.num_classes}, or others. Use a teacher that was trained on the same data."
        )
    model = timm.create_model(checkpoint.model_name, **checkpoint.model_kwargs)
    load_weights(model, checkpoint.state_dict, new_head=False)
    return model, checkpoint.preprocessing


def _of_timm(
    config: DistillationConfig, data: ImageDataModule
) -> tuple[nn.Module, Mapping[str, Any]]:
    name = str(config.teacher)
    if ":" not in name and not timm.is_model(name):
        near = timm.list_models(f"{name[:4]}*") or timm.list_models()[:20]
        raise UnknownNameError("network of timm", name, near)
    model = _created(config, name, data)
    own: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment] # timm's
    if config.weights is None:
        _check_classes(name, own, data)
    return model, own


def _created(config: DistillationConfig, name: str, data: ImageDataModule) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(
            name,
            pretrained=config.weights is None,
            checkpoint_path=config.weights or "",
            num_classes=data.num_classes,
            in_chans=data.in_channels,
        )
    except Exception as error:  # a file of any content, or what a download may fail with
        source = f"the file {config.weights}" if config.weights else "what timm downloads"
        raise CheckpointError(
            f"The teacher {name} cannot be built with {source}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0][:300]}"
        ) from error
    return model


def _check_classes(name: str, own: Mapping[str, Any], data: ImageDataModule) -> None:
    """Refuse a classifier that timm would fill with random numbers without a word."""
    if own.get("num_classes", data.num_classes) != data.num_classes:
        raise ConfigurationError(
            f"The teacher {name} was trained on {own.get('num_classes')} classes, and the data "
            f"has {data.num_classes}. Give weights for this data in distillation.weights, or a "
            "checkpoint of train.py in distillation.teacher."
        )
