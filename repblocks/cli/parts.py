"""From a composed configuration to the parts of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from torch import nn

from repblocks.cli.building import build, build_callback, build_data
from repblocks.cli.composing import plain
from repblocks.cli.networks import create_network, is_new, recipe
from repblocks.data import ImageDataModule
from repblocks.errors import ConfigurationError
from repblocks.training import (
    RepOptimizerConfig,
    TrainingConfig,
    constants_of,
    start_from_branches,
)

# What a network takes from the data where its node says null: its argument, and the fact.
FACTS = {"num_classes": "num_classes", "in_chans": "in_channels"}

_NODES = ("optimizer", "scheduler", "mix", "distillation", "resolution")


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
    model = create_network(settings)
    if isinstance(training.optimizer, RepOptimizerConfig) and is_new(settings):
        start_from_branches(model, constants_of(model, training.optimizer))
    callbacks = settings["callbacks"].items()
    return Parts(
        settings=settings,
        data=data,
        model=model,
        training=training,
        callbacks=[build_callback(f"callbacks.{key}", node) for key, node in callbacks],
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
    nodes = {key: build(key, settings[key]) for key in _NODES}
    known = {field.name for field in fields(TrainingConfig)}
    plain_values = {key: value for key, value in settings.items() if key in known}
    return TrainingConfig(**{**plain_values, **settings["logger"], **nodes})
