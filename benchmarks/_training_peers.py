"""Blocks of timm with the weights of ours, to be timed beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import byobnet, fastvit, repvit
from torch import nn

from repblocks.blocks import ConvBlock

_MOBILEONE = {"kxk{i}": "conv_kxk.{i}", "scale": "conv_scale", "identity": "identity"}
_REPVGG = {"kxk": "conv_kxk", "pointwise": "conv_1x1", "identity": "identity"}


@dataclass(frozen=True)
class Peer:
    """A block of another package.

    Args:
        name: Where it is from.
        build: Makes it for channels, kernel size and whether it is depthwise.
        branches: The name of each of its branches, by ours; none if all weights have our order.
    """

    name: str
    build: Callable[[int, int, bool], nn.Module]
    branches: Mapping[str, str]


def _group_size(is_depthwise: bool) -> int:
    return 1 if is_depthwise else 0


PEERS: dict[str, list[Peer]] = {
    "mobileone": [
        Peer(
            "timm byobnet",
            lambda c, k, dw: byobnet.MobileOneBlock(
                c, c, k, group_size=_group_size(dw), num_conv_branches=4
            ),
            _MOBILEONE,
        ),
        Peer(
            "timm FastViT",
            lambda c, k, dw: fastvit.MobileOneBlock(
                c, c, k, group_size=_group_size(dw), num_conv_branches=4, act_layer=nn.ReLU
            ),
            _MOBILEONE,
        ),
    ],
    "repvgg": [Peer("timm byobnet", lambda c, k, _: byobnet.RepVggBlock(c, c, k), _REPVGG)],
    "repvgg_dw": [Peer("timm RepViT", lambda c, k, _: repvit.RepVggDw(c, k), {})],
}


def peers_of(block: ConvBlock, name: str) -> dict[str, nn.Module]:
    """Return the peers of a block, with its weights.

    Raises:
        RuntimeError: if one does not compute the same.
    """
    shape = block.shape
    found = {}
    for peer in PEERS.get(name, []):
        if shape.in_channels != shape.out_channels or set(shape.stride) != {1}:
            continue
        twin = peer.build(shape.in_channels, shape.kernel_size[0], shape.is_depthwise)
        _copy_weights(block, twin, peer.branches)
        _check_same(block, twin, peer.name)
        found[peer.name] = twin
    return found


def _copy_weights(block: ConvBlock, twin: nn.Module, names: Mapping[str, str]) -> None:
    known = dict(twin.named_modules())
    branches: Any = block.branches if names else {"": block.branches}
    for own, branch in branches.items():
        digits = own.strip("abcdefghijklmnopqrstuvwxyz") if own.startswith("kxk") else ""
        theirs = names.get(own) or names.get("kxk{i}", "").format(i=digits)
        weights = [*branch.parameters()]
        for parameter, weight in zip(known[theirs].parameters(), weights, strict=True):
            parameter.data.copy_(weight.data)


def _check_same(block: ConvBlock, twin: nn.Module, name: str) -> None:
    size = max(block.shape.kernel_size) + 3
    x = torch.randn(2, block.shape.in_channels, size, size)
    with torch.no_grad():
        difference = (block(x) - twin(x)).abs().max().item()
    if difference > 1e-4:
        raise RuntimeError(f"{name} computes something else: the difference is {difference:.1e}.")
