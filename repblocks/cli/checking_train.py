"""What may be set for ``train.py``: derived from the signatures of what is built with it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import timm
from omegaconf import DictConfig

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.blocks import CONV_BLOCKS, ConvBlock
from repblocks.cli.checking import Parameters, check, parameters_of
from repblocks.cli.composing import plain
from repblocks.cli.config import LoggerConfig, TrainConfig
from repblocks.cli.parts import FACTS
from repblocks.deployment.formats import check_formats
from repblocks.errors import ConfigurationError

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
    if config.deploy and config.mode == "train":
        check_formats(config.formats)
        _check_deployable(config.model.model_name)


def _check_deployable(name: str) -> None:
    """Check that a network can be rebuilt in its deployed form, before days of training."""
    if timm.is_model(name) and "deploy" not in parameters_of(timm.model_entrypoint(name)):
        raise ConfigurationError(
            f"model.model_name={name} has no blocks to fold, so no artifact can be written. Take a "
            "network of `repblocks list`, or train without one: deploy=false."
        )


def _trainer_parameters() -> Parameters:
    known = parameters_of(pl.Trainer)
    return {name: known[name] for name in known if name not in _TRAINING_DECIDES}


def _block_parameters(name: Any) -> Parameters:
    """Give what can be set for a block: the kernel size and its own options."""
    known = {"name": _keyword("name"), "options": _keyword("options")}
    known["kernel_size"] = _keyword("kernel_size", int | None)
    if name in CONV_BLOCKS:
        cls = CONV_BLOCKS[name]
        own = parameters_of(cls.build_branches) if issubclass(cls, ConvBlock) else {}
        keyword_only = inspect.Parameter.KEYWORD_ONLY
        known |= {key: p for key, p in own.items() if p.kind is keyword_only}
    return known


def _model_parameters(node: Mapping[str, Any]) -> Parameters:
    """Give what timm's factory takes and, for a registered network, what the network takes."""
    known = parameters_of(timm.create_model)
    name = node.get("model_name")
    if not isinstance(name, str) or not timm.is_model(name):
        return known
    own = parameters_of(timm.model_entrypoint(name))
    factory = {key: p for key, p in known.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    follows = {key: _keyword(key, int | None) for key in FACTS}  # null: as the data has it
    return {**own, **factory, **follows}


def _keyword(name: str, annotation: Any = Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
