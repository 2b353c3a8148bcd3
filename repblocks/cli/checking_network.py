"""What may be set for a network and its block: derived from their signatures."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import timm

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.blocks import CONV_BLOCKS, ConvBlock
from repblocks.cli.block_nodes import block_nodes
from repblocks.cli.checking import Parameters, check, parameters_of
from repblocks.cli.parts import FACTS
from repblocks.errors import ConfigurationError

# The pooling of timm that leaves one value a channel, or two.
Pooling = Literal["avg", "max", "avgmax", "catavgmax"]


def check_network(
    settings: Mapping[str, Any], known: Parameters, nodes: Mapping[str, Parameters]
) -> None:
    """Check settings that hold a network and a block, with their interpolations as written.

    Args:
        settings: With ``model`` and ``block``.
        known: The top-level keys.
        nodes: The keys of other nodes, by path.

    Raises:
        ConfigurationError: naming every wrong key.
    """
    known_nodes, elsewhere = dict(nodes), {}
    if isinstance(settings.get("block"), Mapping):
        block = {key: value for key, value in settings["block"].items() if key != "options"}
        known_nodes["block"] = _block_parameters(block.get("name"))
        elsewhere = _of_other_blocks(block, known_nodes["block"])
        settings = {**settings, "block": block}
    if isinstance(settings.get("model"), Mapping):
        known_nodes["model"] = _model_parameters(settings["model"])
    check(settings, known, known_nodes, elsewhere)
    _check_registered(settings["model"])
    _check_kernel_size(settings["block"].get("kernel_size"))


def _check_registered(model: Mapping[str, Any]) -> None:
    """Check that timm has the network; a name with a colon says where else it is."""
    name = model.get("model_name")
    if not isinstance(name, str) or ":" in name or timm.is_model(name):
        return
    nearest = difflib.get_close_matches(name, timm.list_models(), n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigurationError(
        f"model.model_name: unknown network {name!r}.{hint} `repblocks list` prints the networks "
        "that fold, timm.list_models() gives all."
    )


def _check_kernel_size(size: Any) -> None:
    """Check what a block would say in terms of its padding, which a network sets."""
    if isinstance(size, int) and (size < 1 or size % 2 == 0):
        raise ConfigurationError(
            f"block.kernel_size must be odd (1, 3, 5, ...), or null for the sizes of the network, "
            f"got {size}."
        )


def _block_parameters(name: Any) -> Parameters:
    """Give what can be set for a block: the kernel size and its own options."""
    known = {"name": _keyword("name"), "kernel_size": _keyword("kernel_size", int | None)}
    if name in CONV_BLOCKS:
        cls = CONV_BLOCKS[name]
        own = parameters_of(cls.build_branches) if issubclass(cls, ConvBlock) else {}
        keyword_only = inspect.Parameter.KEYWORD_ONLY
        known |= {key: p for key, p in own.items() if p.kind is keyword_only}
    return known


def _of_other_blocks(node: Mapping[str, Any], known: Parameters) -> dict[str, str]:
    """Say of each option that this block does not have which blocks have it."""
    nodes = block_nodes()
    said = {}
    for key in node.keys() - known.keys():
        owners = [f"block={name}" for name, own in nodes.items() if key in own]
        if owners:
            said[f"block.{key}"] = (
                f"block.{key} does not exist for block={node.get('name') or 'default'}. "
                f"It is an option of {', '.join(owners)}."
            )
    return said


def _model_parameters(node: Mapping[str, Any]) -> Parameters:
    """Give what timm's factory takes and, for a registered network, what the network takes."""
    known = parameters_of(timm.create_model)
    name = node.get("model_name")
    if not isinstance(name, str) or not timm.is_model(name):
        return known
    entry = timm.model_entrypoint(name)
    own = parameters_of(entry)
    if entry.__module__.startswith("repblocks.models."):
        own["global_pool"] = _keyword("global_pool", Pooling)
    factory = {key: p for key, p in known.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    follows = {key: _keyword(key, int | None) for key in FACTS}  # null: as the data has it
    return {**own, **factory, **follows}


def _keyword(name: str, annotation: Any = Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
