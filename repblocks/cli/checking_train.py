"""What may be set for ``train.py``: derived from the signatures of what is built with it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import timm
from omegaconf import DictConfig

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.blocks import CONV_BLOCKS
from repblocks.cli.checking import Parameters, check, parameters_of
from repblocks.cli.composing import block_options, plain
from repblocks.cli.config import LoggerConfig, TrainConfig

_TRAINING_DECIDES = (
    *("callbacks", "default_root_dir", "logger", "plugins", "use_distributed_sampler"),
    "num_sanity_val_steps",
)


def check_train(config: DictConfig) -> None:
    """Check a composed configuration of ``train.py``.

    Raises:
        ConfigurationError: naming every wrong key.
    """
    settings = plain(config, resolve=False)
    nodes = {"trainer": _trainer_parameters(), "logger": parameters_of(LoggerConfig)}
    if isinstance(settings.get("block"), Mapping):
        nodes["block"] = _block_parameters(settings["block"].get("name"))
    if isinstance(settings.get("model"), Mapping):
        nodes["model"] = _model_parameters(settings["model"])
    check(settings, parameters_of(TrainConfig), nodes)


def _trainer_parameters() -> Parameters:
    known = parameters_of(pl.Trainer)
    return {name: known[name] for name in known if name not in _TRAINING_DECIDES}


def _block_parameters(name: str | None) -> Parameters:
    free = {key: _keyword(key) for key in ("name", "options")}
    return free | (block_options(name) if name is None or name in CONV_BLOCKS else {})
