"""Any network of timm by its name, its convolutions swapped for blocks if one is named.

``timm.create_model("repblocks_timm", name="resnet18", block="dbb")`` is timm's ``resnet18`` with
blocks; without a block it is ``resnet18`` as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, load_pretrained, load_state_dict, register_model
from torch import nn

from repblocks.errors import CheckpointError, ConfigurationError, UnknownNameError
from repblocks.expansion import swap
from repblocks.folding.fold import fold

#: timm hands its own settings to each entry point; those of the network are the network's.
_OF_TIMM = ("pretrained_cfg_overlay", "cache_dir")
_log = logging.getLogger(__name__)


@register_model  # type: ignore[untyped-decorator] # timm's functions are typed in part
def repblocks_timm(
    pretrained: bool = False,
    *,
    name: str = "",
    num_classes: int = 1000,
    in_chans: int = 3,
    block: str | None = None,
    block_options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    deploy: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Create one by its name: any network of timm, with or without blocks.

    The blocks take the places of its convolutions of more than one tap.

    Args:
        pretrained: Download timm's weights; where a block is put in, they are lost.
        name: The network, as timm calls it.
        num_classes: Scores.
        in_chans: Channels of the images.
        block: A conv block by name; None leaves the network as it is.
        block_options: Options of the block.
        weights: A local checkpoint to start from, loaded before blocks are put in; a classifier of
            another number of classes starts new.
        deploy: Build the folded network, for weights that are folded already.
        kwargs: More arguments of timm's network.

    Raises:
        UnknownNameError: if timm has no such network.
        ConfigurationError: if there is no name, no block for its options, or no convolution for it.
        CheckpointError: if the weights cannot be read, or are of another network.
    """
    if not name:
        raise ConfigurationError("name is required: that of a network of timm, resnet18 say.")
    if block is None and block_options:
        raise ConfigurationError(f"block_options needs a block, got {dict(block_options)} alone.")
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:4]}*") or timm.list_models()[:20]
        raise UnknownNameError("network of timm", name, near)
    source = _as_dict(kwargs.pop("pretrained_cfg", None))
    model: nn.Module = timm.create_model(
        name,
        pretrained=pretrained and not source,
        num_classes=num_classes,
        in_chans=in_chans,
        **{key: value for key, value in kwargs.items() if key not in _OF_TIMM},
    )
    own = {**_as_dict(getattr(model, "pretrained_cfg", None)), **source}
    if weights:
        _load_(model, weights, own.get("classifier", ()))
    if block is not None:
        model = swap(model, block, **(block_options or {}))
    if deploy:
        model = _folded(model, (in_chans, *own.get("input_size", (3, 224, 224))[1:]))
    model.pretrained_cfg = own  # type: ignore[assignment] # a plain attribute, which timm reads
    if pretrained and source:
        load_pretrained(model, source, num_classes, in_chans)
    return model


def _as_dict(cfg: Any) -> dict[str, Any]:
    """Give what timm knows about weights as plain values, those that are set."""
    known = asdict(cfg) if isinstance(cfg, PretrainedCfg) else dict(cfg or {})
    return {key: value for key, value in known.items() if value is not None}


def _folded(model: nn.Module, image: tuple[int, ...]) -> nn.Module:
    """Fold a network for its architecture alone: weights that are folded already follow."""
    return fold(model, torch.zeros(2, *image), verify=False).train()


def _load_(model: nn.Module, path: str, classifier: str | tuple[str, ...]) -> None:
    try:
        state = load_state_dict(path, weights_only=True)
    except Exception as error:  # a file of any content, and no code of it is run
        why = str(error).rstrip(".") or "there is no such file"
        if "weights_only" in why:  # it says how to run the code in the file
            why = "it holds more than tensors, which could run code"
        raise CheckpointError(
            f"weights cannot be read from {path}: {why}. Give a state dict that torch.save or "
            "safetensors wrote."
        ) from error
    heads = (classifier,) if isinstance(classifier, str) else classifier
    own = model.state_dict()
    other = [
        f"{head}.{kind}"
        for head in heads
        for kind in ("weight", "bias")
        if (key := f"{head}.{kind}") in state and key in own and own[key].shape != state[key].shape
    ]
    if other:
        _log.warning("Another number of classes: %s start new.", ", ".join(other))
    try:
        model.load_state_dict({**state, **{key: own[key] for key in other}})
    except RuntimeError as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise CheckpointError(
            f"The weights of {path} are not of this network: {lines[:400]}"
        ) from error
