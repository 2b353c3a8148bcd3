"""The network of a run: new, from the weights of another, or expanded from a trained one."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.cli.building import build, build_data
from repblocks.cli.checking import parameters_of
from repblocks.cli.folders import is_first_process
from repblocks.deployment.load import read_weights
from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.expansion import expand
from repblocks.training import Checkpoint, load_weights, read_checkpoint

_logger = logging.getLogger(__name__)
_BATCHES = 4
_TRAINED = ("init_from=CHECKPOINT", "model.weights=FILE", "model.pretrained=true")


def create_network(settings: Mapping[str, Any]) -> nn.Module:
    """Build the network of a resolved configuration.

    Raises:
        RepblocksError: if it refuses its options, or its first weights are not possible.
    """
    node, is_continued = settings["model"], settings["ckpt_path"] is not None
    if not settings["expand"] or is_continued:
        return _started(build("model", node), settings)
    name, options = node.get("block"), node.get("block_options") or {}
    if name is None:
        raise ConfigurationError("expand=true needs the block to expand into: block=NAME.")
    if is_new(settings):
        raise ConfigurationError(
            f"expand=true starts from a trained network: {', '.join(_TRAINED)}. For blocks with "
            "new weights leave expand out."
        )
    trained = _started(build("model", {**node, "block": None, "block_options": None}), settings)
    images = itertools.islice(build_data(settings["data"]).train_dataloader(), _BATCHES)
    return expand(trained, name, images, **options)


def is_new(settings: Mapping[str, Any]) -> bool:
    """Tell whether a run starts from random weights."""
    node = settings["model"]
    return not (settings["init_from"] or node.get("weights") or node.get("pretrained"))


def recipe(model: Mapping[str, Any]) -> dict[str, Any]:
    """Give name and arguments of the network itself, without where its weights came from."""
    import timm

    others = {"_target_", "weights", *parameters_of(timm.create_model)}
    kwargs = {key: value for key, value in model.items() if key not in others}
    return {"name": model["model_name"], "kwargs": kwargs}


def _started(model: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    if settings["init_from"] is not None:
        path = Path(settings["init_from"])
        checkpoint = None if path.is_dir() else read_checkpoint(path)
        _start_from(path, model, checkpoint)
        if checkpoint is not None:
            _tell_differences(checkpoint, settings)
    return model


def _tell_differences(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Say which options of the network are not those that its weights were trained with."""
    old, new = checkpoint.model_kwargs, recipe(settings["model"])["kwargs"]
    meant = {"num_classes", *(("block", "block_options") if settings["expand"] else ())}
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted((old.keys() | new.keys()) - meant)
        if (old.get(key) or None) != (new.get(key) or None)
    ]
    if changed and is_first_process():
        _logger.warning(
            "The weights of %s fit, but were trained with other options of the network: %s.",
            checkpoint.path,
            "; ".join(changed),
        )


def _start_from(path: Path, model: nn.Module, checkpoint: Checkpoint | None) -> None:
    """Load the weights of a checkpoint or artifact; another number of classes keeps its new head.

    Raises:
        CheckpointError: if they cannot be read, or are of another network.
    """
    weights = read_weights(path) if checkpoint is None else checkpoint.state_dict
    try:
        load_weights(model, weights, new_head=True)
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        raise CheckpointError(
            f"{error} An artifact holds the deployed form: train that with model.deploy=true."
        ) from error
