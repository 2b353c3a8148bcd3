"""Build the parts of a run from their nodes; a refusal says which node it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from repblocks.cli.checking import check, parameters_of
from repblocks.cli.config import DeployConfig
from repblocks.data import Augmentation, ImageDataModule
from repblocks.errors import CheckpointError, ConfigurationError, RepblocksError


def build(path: str, node: Mapping[str, Any]) -> Any:
    """Build what the ``_target_`` of a node says.

    Args:
        path: Where the node stands in the configuration.
        node: Plain values.

    Raises:
        RepblocksError: what the target raised.
        ConfigurationError: if the target refused its arguments in another way.
    """
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, RepblocksError):
            raise cause from error
        raise ConfigurationError(f"{path} cannot be built: {_said(cause or error)}") from error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


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


def build_recorded_data(node: Mapping[str, Any]) -> ImageDataModule:
    """Build the data module that a checkpoint names, which may come from anywhere.

    Raises:
        CheckpointError: if it names anything but our data modules: such code is not run.
        ConfigurationError: naming each wrong key.
    """
    allowed = {_name(cls): cls for cls in (*_subclasses(ImageDataModule), Augmentation)}
    for target in _targets(node):
        if target not in allowed:
            raise CheckpointError(
                f"The checkpoint names {target!r} as its data, which is no data module of "
                "repblocks. It was not run. Take a checkpoint that train.py wrote."
            )
    check({"data": node}, {"data": parameters_of(DeployConfig)["data"]}, {})
    return build_data(node)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _subclasses(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    return [found for child in children for found in (child, *_subclasses(child))]


def _targets(node: Any) -> list[Any]:
    """Give each ``_target_``, at any depth."""
    if isinstance(node, Mapping):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in _targets(value)]
    return [target for item in node for target in _targets(item)] if isinstance(node, list) else []
