"""Build the parts of a run from their nodes; a refusal says which node it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from repblocks.data import ImageDataModule
from repblocks.deployment.quantization import QuantizationConfig
from repblocks.errors import ConfigurationError, RepblocksError


def build(path: str, node: Any) -> Any:
    """Build what the ``_target_`` of a node says.

    Args:
        path: Where the node stands in the configuration.
        node: Plain values.

    Raises:
        RepblocksError: what the target raised.
        ConfigurationError: if there is no target, or it refused its arguments in another way.
    """
    if not (isinstance(node, Mapping) and "_target_" in node):
        raise ConfigurationError(
            f"{path} must be a group of keys with a _target_, got {node!r}. Set {path}._target_ to "
            "the class that it is to be."
        )
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, RepblocksError):
            raise cause from error
        raise ConfigurationError(f"{path} cannot be built: {_said(cause or error)}") from error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def build_callback(path: str, node: Any) -> pl.Callback:
    """Build a callback.

    Raises:
        ConfigurationError: if the node describes something else.
    """
    callback = build(path, node)
    if not isinstance(callback, pl.Callback):
        raise ConfigurationError(
            f"{path}._target_ must be a Callback of Lightning, got {type(callback).__name__}."
        )
    return callback


def build_data(node: Mapping[str, Any]) -> ImageDataModule:
    """Build a data module.

    Raises:
        ConfigurationError: if the node describes something else.
    """
    data = build("data", node)
    if not isinstance(data, ImageDataModule):
        raise ConfigurationError(
            f"data._target_ must be an ImageDataModule, got {type(data).__name__}."
        )
    return data


def build_quantization(node: Mapping[str, Any] | None) -> QuantizationConfig | None:
    """Build what says how to quantize; without a node it is what the library does.

    Raises:
        ConfigurationError: if the node describes something else.
    """
    if node is None:
        return None
    config = build("quantization", node)
    if not isinstance(config, QuantizationConfig):
        raise ConfigurationError(
            f"quantization._target_ must be a QuantizationConfig, got {type(config).__name__}."
        )
    return config
