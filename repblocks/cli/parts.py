"""From a composed configuration to the parts of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from torch import nn

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.cli.building import build, build_data
from repblocks.cli.checking import parameters_of
from repblocks.cli.composing import plain
from repblocks.data import ImageDataModule
from repblocks.deployment.load import read_weights
from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.training import TrainingConfig, load_weights, read_checkpoint

# What a network takes from the data where its node says null: its argument, and the fact.
FACTS = {"num_classes": "num_classes", "in_chans": "in_channels"}


@dataclass(frozen=True)
class Parts:
    """What training is given.

    Args:
        settings: The resolved configuration, as plain values.
        data: With its images opened.
        model: The network in its training form.
        training: What happens in training.
        callbacks: Those of the configuration.
        description: What checkpoints say about the run.
    """

    settings: dict[str, Any]
    data: ImageDataModule
    model: nn.Module
    training: TrainingConfig
    callbacks: list[pl.Callback]
    description: dict[str, Any]


def build_parts(config: DictConfig) -> Parts:
    """Build everything that a run needs.

    Raises:
        RepblocksError: if a part refuses its options, or the data is missing.
    """
    data = build_data(plain(config.data, resolve=True))
    data.setup("fit")
    settings = _resolved(config, data)
    _check_facts(settings["model"], data)
    training = _training(settings)
    pl.seed_everything(settings["seed"], verbose=False)  # the initial weights
    model = build("model", settings["model"])
    if settings["init_from"] is not None:
        _start_from(Path(settings["init_from"]), model)
    callbacks = settings["callbacks"].items()
    return Parts(
        settings=settings,
        data=data,
        model=model,
        training=training,
        callbacks=[build(f"callbacks.{key}", node) for key, node in callbacks],
        description={"config": settings, "model": recipe(settings["model"])},
    )


def _resolved(config: DictConfig, data: ImageDataModule) -> dict[str, Any]:
    """Resolve the configuration; what the network takes from the data may be known only now."""
    known = OmegaConf.create(plain(config, resolve=False))
    for argument, fact in FACTS.items():
        known["data"].setdefault(fact, getattr(data, fact))
        if OmegaConf.select(known, f"model.{argument}") is None:
            known["model"][argument] = getattr(data, fact)
    return {**plain(known, resolve=True), "data": plain(config.data, resolve=True)}


def _check_facts(model: Mapping[str, Any], data: ImageDataModule) -> None:
    wrong = [
        f"model.{argument} is {model[argument]}, but the data has {getattr(data, fact)}"
        for argument, fact in FACTS.items()
        if argument in model and model[argument] != getattr(data, fact)
    ]
    if wrong:
        raise ConfigurationError(f"{'; '.join(wrong)}. Leave it out, it follows from the data.")


def _training(settings: Mapping[str, Any]) -> TrainingConfig:
    nodes = {key: build(key, settings[key]) for key in ("optimizer", "scheduler", "mix")}
    known = {field.name for field in fields(TrainingConfig)}
    plain_values = {key: value for key, value in settings.items() if key in known}
    return TrainingConfig(**{**plain_values, **settings["logger"], **nodes})


def recipe(model: Mapping[str, Any]) -> dict[str, Any]:
    """Give name and arguments of the network itself, without where its weights came from."""
    import timm

    others = {"_target_", "weights", *parameters_of(timm.create_model)}
    kwargs = {key: value for key, value in model.items() if key not in others}
    return {"name": model["model_name"], "kwargs": kwargs}


def _start_from(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint or artifact; another number of classes keeps its new head.

    Raises:
        CheckpointError: if they cannot be read, or are of another network.
    """
    weights = read_weights(path) if path.is_dir() else read_checkpoint(path).state_dict
    try:
        load_weights(model, weights, new_head=True)
    except CheckpointError as error:
        if not path.is_dir():
            raise
        raise CheckpointError(
            f"{error} An artifact holds the deployed form: train that with model.deploy=true."
        ) from error
