"""The data module that a checkpoint names: a file that may come from anywhere runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repblocks.cli.checking import check, parameters_of
from repblocks.cli.config import DeployConfig
from repblocks.data import Augmentation, ImageDataModule
from repblocks.errors import CheckpointError, ConfigurationError, RepblocksError

_TARGET = "_target_"


def build_recorded_data(
    recorded: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> ImageDataModule:
    """Build the data module that a checkpoint names.

    Hydra neither resolves nor instantiates what is recorded, as both can call any function.

    Args:
        recorded: The node ``data`` of the checkpoint's configuration.
        changes: Options over it, at any depth.

    Raises:
        CheckpointError: if it names anything but our data modules, or holds other than plain
            values.
        ConfigurationError: naming each wrong key.
    """
    allowed = {target_of(cls): cls for cls in (*_subclasses(ImageDataModule), Augmentation)}
    _check_plain(recorded, allowed)
    # A file must not make this machine download, or write where it says.
    own = {key: value for key, value in recorded.items() if key != "download"}
    node = _merged(own, changes or {})
    _check_plain(node, allowed)
    check({"data": node}, {"data": parameters_of(DeployConfig)["data"]}, {})
    try:
        data = _built(node, allowed)
    except RepblocksError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"data cannot be built: {error}") from error
    if not isinstance(data, ImageDataModule):
        raise CheckpointError(
            f"The data of the checkpoint is to be {node.get(_TARGET)!r}, which is no data module "
            "of repblocks. Take a checkpoint that train.py wrote."
        )
    return data


def target_of(cls: type) -> str:
    """Name a class as a configuration does."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _subclasses(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    return [found for child in children for found in (child, *_subclasses(child))]


def _check_plain(node: Any, allowed: Mapping[str, type]) -> None:
    """Refuse classes that are not ours, interpolations, and whatever is no plain value."""
    if isinstance(node, dict):
        target = node.get(_TARGET)
        if _TARGET in node and not (isinstance(target, str) and target in allowed):
            raise CheckpointError(
                f"The data of the checkpoint is to be {target!r}, which is no data module of "
                "repblocks. It was not run. Take a checkpoint that train.py wrote."
            )
        for key, value in node.items():
            _check_plain(key, allowed)
            _check_plain(value, allowed)
    elif isinstance(node, list):
        for value in node:
            _check_plain(value, allowed)
    elif not isinstance(node, str | int | float | None) or (isinstance(node, str) and "${" in node):
        raise CheckpointError(
            f"The data of the checkpoint holds {node!r}, and only plain values are read. It was "
            "not run. Take a checkpoint that train.py wrote."
        )


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Put values over others; a group of keys of another class replaces the old one."""
    if new.get(_TARGET, old.get(_TARGET)) != old.get(_TARGET):
        return dict(new)
    groups = {k: v for k, v in new.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}
    return {**old, **new, **{key: _merged(old[key], value) for key, value in groups.items()}}


def _built(node: Any, allowed: Mapping[str, type]) -> Any:
    """Build each class, those inside first."""
    if isinstance(node, list):
        return [_built(item, allowed) for item in node]
    if not isinstance(node, dict):
        return node
    values = {key: _built(value, allowed) for key, value in node.items() if key != _TARGET}
    return allowed[node[_TARGET]](**values) if _TARGET in node else values
