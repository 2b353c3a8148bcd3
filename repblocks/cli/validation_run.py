"""``train.py mode=validate``: measure a checkpoint on validation images."""

from __future__ import annotations

import copy
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from repblocks.cli.building import build_data
from repblocks.cli.composing import plain
from repblocks.cli.folders import remove_empty
from repblocks.cli.recorded_data import build_recorded_data
from repblocks.data import ImageDataModule
from repblocks.deployment.load import build
from repblocks.errors import ConfigurationError
from repblocks.training import (
    Evaluation,
    check_same_images,
    load_weights,
    read_checkpoint,
    validate,
)
from repblocks.training.checkpoint import Checkpoint


def for_validation(config: DictConfig) -> DictConfig:
    """Leave of ``data`` what the command line says, unless it names other data altogether.

    The rest is recorded in the checkpoint, as it is for ``deploy.py``.
    """
    given = OverridesParser.create().parse_overrides(HydraConfig.get().overrides.task)
    if any(one.key_or_group in ("data", "experiment") for one in given):
        return config
    config = copy.deepcopy(config)
    config.data = {}
    for one in given:
        if one.key_or_group.startswith("data.") and not one.is_delete():
            OmegaConf.update(config, one.key_or_group, one.value(), force_add=True)
    return config


def validate_checkpoint(config: DictConfig) -> float:
    """Measure a checkpoint and print top-1, top-5 and each class.

    The images are those of the run that wrote it, with each ``data.OPTION`` of the command line
    changed; or those of ``data=`` or ``experiment=``, if one is given.

    Args:
        config: As ``for_validation`` gives it.

    Returns:
        The top-1 accuracy.

    Raises:
        ConfigurationError: if there is no ``ckpt_path``, or the images do not fit.
        CheckpointError: if it cannot be read.
        DataError: if the images are missing.
    """
    try:
        evaluation = _evaluate(config)
    finally:
        remove_empty(Path(HydraConfig.get().runtime.output_dir))
    Console().print(evaluation.table())
    return evaluation.top1


def _evaluate(config: DictConfig) -> Evaluation:
    if config.ckpt_path is None:
        raise ConfigurationError("mode=validate needs a checkpoint: ckpt_path=FILE.")
    checkpoint = read_checkpoint(config.ckpt_path)
    data = _data(config, checkpoint)
    model = build(checkpoint.model_name, checkpoint.model_kwargs, checkpoint.path)
    load_weights(model, checkpoint.state_dict, new_head=False)
    return validate(model, data, plain(config.trainer, resolve=True))


def _data(config: DictConfig, checkpoint: Checkpoint) -> ImageDataModule:
    """Take the data that was asked for, or that of the checkpoint with changes over its options.

    Raises:
        ConfigurationError: if it has other classes or is prepared in another way.
    """
    node = plain(config.data, resolve=True)
    if "_target_" in node:
        data = build_data(node)
    else:
        data = build_recorded_data(checkpoint.config.get("data", {}), node)
    data.setup("validate")
    check_same_images(checkpoint, data)
    return data
