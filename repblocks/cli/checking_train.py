"""What may be set for ``train.py``: derived from the signatures of what is built with it."""

from __future__ import annotations

import pytorch_lightning as pl
from omegaconf import DictConfig

from repblocks.cli.building import build, build_quantization
from repblocks.cli.checking import Parameters, parameters_of
from repblocks.cli.checking_network import check_network
from repblocks.cli.composing import plain
from repblocks.cli.config import LoggerConfig, TrainConfig
from repblocks.deployment.formats import check_formats, check_onnx

_TRAINING_DECIDES = (
    *("callbacks", "default_root_dir", "logger", "plugins", "use_distributed_sampler"),
    "num_sanity_val_steps",
)


def check_train(config: DictConfig) -> None:
    """Check a composed configuration of ``train.py``.

    Raises:
        ConfigurationError: naming every wrong key.
    """
    nodes = {"trainer": _trainer_parameters(), "logger": parameters_of(LoggerConfig)}
    check_network(plain(config, resolve=False), parameters_of(TrainConfig), nodes)
    if config.deploy and config.mode == "train":
        formats = check_formats(config.formats)
        check_onnx(formats, build("onnx_export", plain(config.onnx_export, resolve=True)))
        node = config.get("quantization")
        build_quantization(None if node is None else plain(node, resolve=True))


def _trainer_parameters() -> Parameters:
    known = parameters_of(pl.Trainer)
    return {name: known[name] for name in known if name not in _TRAINING_DECIDES}
