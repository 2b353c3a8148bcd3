"""Find the pairs of layers between which a channel can be scaled and scaled back.

Between the two stand only steps ``f`` with ``f(s x) = s f(x)`` for ``s > 0``, channel by channel:
the positively homogeneous ones. They are found in the graph that `torch.export` records, whatever
classes the network is made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from repblocks.deployment.quantization.simulation import Layer, quantizable_layers

_aten = torch.ops.aten
_LAYERS = {
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.conv1d.padding,
    _aten.conv2d.padding,
    _aten.conv3d.padding,
    _aten.linear.default,
}
_HOMOGENEOUS = {
    _aten.relu.default,
    _aten.relu_.default,
    _aten.leaky_relu.default,
    _aten.leaky_relu_.default,
    _aten.prelu.default,
    _aten.dropout.default,
    _aten.alias.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.max_pool1d.default,
    _aten.max_pool2d.default,
    _aten.max_pool3d.default,
    _aten.avg_pool1d.default,
    _aten.avg_pool2d.default,
    _aten.avg_pool3d.default,
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.adaptive_avg_pool3d.default,
}
_FLATTEN = {_aten.flatten.using_ints, _aten.view.default, _aten.reshape.default}


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer, and the only one that reads what it gives.

    Args:
        first: Path of the layer that writes the channels.
        second: Path of the layer that reads them.
    """

    first: str
    second: str


def find_pairs(model: nn.Module, example: Tensor) -> list[Pair]:
    """Find all pairs, in the order in which they run.

    Args:
        model: In evaluation mode.
        example: ``(N, C, H, W)`` images with ``N >= 2``.
    """
    program = torch.export.export(model, (example,))
    names = program.graph_signature.inputs_to_parameters
    free = _used_once(model)
    layers: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        path = _path(node, names)
        if path in free:
            layers[node] = path
    found = ((path, _reader(node)) for node, path in layers.items())
    return [Pair(path, layers[node]) for path, node in found if node in layers]


def _path(node: fx.Node, names: dict[str, str]) -> str | None:
    """Give the path of the layer that a node is, if its weight is a parameter with one use."""
    if node.target not in _LAYERS or not isinstance(weight := node.args[1], fx.Node):
        return None
    if len(weight.users) > 1 or len(node.args[0].meta["val"].shape) < 2:  # type: ignore[union-attr] # a tensor
        return None
    return names.get(weight.name, "").removesuffix(".weight") or None


def _used_once(model: nn.Module) -> dict[str, Layer]:
    """Give the layers whose parameters are not shared with others."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {
        path: layer
        for path, layer in quantizable_layers(model).items()
        if all(owners[id(p)] == 1 for p in layer.parameters(recurse=False))
    }


def _reader(node: fx.Node) -> fx.Node | None:
    """Give the one layer that reads a node, through steps that are homogeneous."""
    for after in _followers(node):
        if after.target in _LAYERS:
            return after
    return None


def _followers(node: fx.Node) -> Iterator[fx.Node]:
    """Walk along while there is one user and each step keeps its channels apart."""
    while len(node.users) == 1:
        (after,) = node.users
        if after.args[0] is not node:
            return
        yield after
        if not _keeps_channels(after):
            return
        node = after


def _keeps_channels(node: fx.Node) -> bool:
    if node.target in _FLATTEN:
        before, after = (n.meta["val"].shape for n in (node.args[0], node))  # type: ignore[union-attr]
        return len(after) == 2 and before[0] == after[0]
    if node.target is _aten.mean.dim:
        rank = len(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
        return all(axis % rank > 1 for axis in node.args[1])  # type: ignore[union-attr,operator]
    return node.target in _HOMOGENEOUS
