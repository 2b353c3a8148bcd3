"""``train.py mode=validate``: measure a checkpoint on validation images."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from repblocks.cli.building import build_data
from repblocks.cli.composing import plain
from repblocks.cli.folders import remove_empty
from repblocks.cli.recorded_data import build_recorded_data
from repblocks.data import ImageDataModule
from repblocks.deployment.load import build
from repblocks.errors import ConfigurationError
from repblocks.training import Evaluation, load_weights, read_checkpoint, validate
from repblocks.training.checkpoint import Checkpoint


def validate_checkpoint(config: DictConfig) -> float:
    """Measure a checkpoint and print top-1, top-5 and each class.

    The images are those of the run that wrote it, or those of ``data=`` if it is given.

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
    """Take the data that was asked for, or that of the checkpoint.

    Raises:
        ConfigurationError: if it has other classes or is prepared in another way.
    """
    overrides = [text.lstrip("+") for text in HydraConfig.get().overrides.task]
    if any(text.startswith(("data=", "data.", "experiment=")) for text in overrides):
        data = build_data(plain(config.data, resolve=True))
    else:
        data = build_recorded_data(checkpoint.config.get("data", {}))
    data.setup("validate")
    wanted = (checkpoint.preprocessing, list(checkpoint.class_names))
    if (data.preprocessing, list(data.class_names)) != wanted:
        raise ConfigurationError(
            f"The images do not fit the checkpoint: it has {len(checkpoint.class_names)} classes "
            f"and images prepared as {checkpoint.preprocessing}, the data has {data.num_classes} "
            f"and {data.preprocessing}. Use the data of the run that wrote it."
        )
    return data
