"""From emitted nodes to a whole ONNX model: names, constants, declarations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from repblocks.deployment.onnx_fold.emitting import Emitted, Value
from repblocks.deployment.onnx_fold.reading import every_node, graphs_of, reads
from repblocks.deployment.onnx_fold.translating import Translation
from repblocks.errors import RepblocksError

Node = onnx.NodeProto
#: What is written anew of a graph.
_OWN = ("node", "initializer", "input", "value_info", "quantization_annotation")
#: Before this version each initializer is an input as well.
_FREE_OF_INPUTS = 4
#: A protobuf message holds less than 2 GiB; larger weights lie beside it.
_LARGEST = 2**31 - 2**20


def assemble(
    translation: Translation, emitted: Sequence[Emitted], outputs: Sequence[Value]
) -> onnx.ModelProto:
    """Return the model with these nodes, which keeps all else that it had.

    The outputs have the names they had, and so has every value that a node of the old graph gives
    or reads, wherever that is possible: such a node stays as it was, byte for byte.

    Args:
        translation: The old model.
        emitted: The new nodes, in order.
        outputs: The values of those outputs that depend on inputs.
    """
    names = _Names(translation.model)
    again = names.give(emitted, dict(zip(translation.outputs, outputs, strict=True)))
    weights: list[onnx.TensorProto] = []
    nodes: list[Node] = []
    for one in emitted:
        nodes += _for_inner(one, names)
        nodes.append(_named(one, names, weights))
    nodes += again
    read = {name for node in nodes for name in reads(node)}
    casts = ((name, values) for name, values in translation.casts.items() if name in read)
    weights += [numpy_helper.from_array(values, name) for name, values in casts]
    return _model(translation.model, nodes, weights)


class _Names:
    """Gives each value a name: the one it had in the old graph, if it had one that is free."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._known = {one.name for one in (*graph.initializer, *graph.output)}
        self._given = {one.name for one in graph.input}
        for node in every_node(graph):
            self._known.update((*node.input, *node.output, node.name))
            for inner in graphs_of(node):
                self._known.update(one.name for one in (*inner.input, *inner.initializer))

    def give(self, emitted: Iterable[Emitted], outputs: Mapping[str, Value]) -> list[Node]:
        """Name all values; return the nodes that give a value another name, as an output has."""
        again: list[Node] = []
        for name, value in outputs.items():
            if value.name and value.name != name:
                again.append(helper.make_node("Identity", [value.name], [name]))
            self._given.add(name)
            value.name = value.name or name
        old, new = (
            [one for one in emitted if not one.is_new],
            [one for one in emitted if one.is_new],
        )
        for name, value in (item for one in old for item in one.gives.items()):
            self._name(value, name)
        for name, value in (item for one in old for item in one.reads.items()):
            self._name(value, name)
        for value in (value for one in new for value in one.gives.values()):
            self._name(value, "")
        return again

    def _name(self, value: Value, wanted: str) -> None:
        if not value.name:
            is_free = wanted and wanted not in self._given
            value.name = wanted if is_free else self.fresh(wanted or "folded")
            self._given.add(value.name)

    def fresh(self, stem: str) -> str:
        """Return a name that nothing has."""
        names = chain([stem], (f"{stem}_{number}" for number in count(1)))
        found = next(name for name in names if name not in self._known | self._given)
        self._known.add(found)
        return found

    def is_given(self, name: str) -> bool:
        """Tell whether a value has this name."""
        return name in self._given


def _named(one: Emitted, names: _Names, weights: list[onnx.TensorProto]) -> Node:
    """Return a node with the names of its values, and with its weights among the constants."""
    new = {name: value.name for name, value in (one.reads | one.gives).items()}
    if one.is_new:
        (result,) = one.gives.values()
        for key, values in one.weights.items():
            new[key] = names.fresh(f"{result.name}_{key}")
            weights.append(numpy_helper.from_array(values, new[key]))
    if all(old == name for old, name in new.items()):
        return one.proto
    node = onnx.NodeProto()
    node.CopyFrom(one.proto)
    node.input[:] = [new.get(name, name) for name in one.proto.input]
    node.output[:] = [new.get(name, name) for name in one.proto.output]
    node.name = node.name or names.fresh(f"{node.output[0]}_{node.op_type}")
    return node


def _for_inner(one: Emitted, names: _Names) -> Iterator[Node]:
    """Yield nodes that give values the names which graphs inside a node read them by.

    Raises:
        RepblocksError: if such a name is that of another value.
    """
    if not any(graphs_of(one.proto)):
        return
    for name, value in one.reads.items():
        if name not in one.proto.input and value.name != name:
            if names.is_given(name):
                raise RepblocksError(f"{name!r} is read inside {one.proto.name!r} and replaced.")
            yield helper.make_node("Identity", [value.name], [name])


def _model(
    old: onnx.ModelProto, nodes: Sequence[Node], weights: Sequence[onnx.TensorProto]
) -> onnx.ModelProto:
    new, graph = onnx.ModelProto(), old.graph
    new.CopyFrom(old)
    for field in _OWN:
        new.graph.ClearField(field)
    wanted = {name for node in nodes for name in reads(node)} | {one.name for one in graph.output}
    given = {name for node in nodes for name in node.output} | {one.name for one in weights}
    constants = []
    for node in reversed(graph.node):
        names = set(node.output) & wanted - given
        if names:
            constants.append(node)
            given.update(node.output)
            wanted.update(reads(node))
    new.graph.node.extend([*constants[::-1], *nodes])
    new.graph.initializer.extend(one for one in graph.initializer if one.name in wanted)
    new.graph.initializer.extend(weights)
    old_constants = {one.name for one in graph.initializer}
    new.graph.input.extend(
        one for one in graph.input if one.name in wanted or one.name not in old_constants
    )
    if old.ir_version < _FREE_OF_INPUTS:
        new.graph.input.extend(
            helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in weights
        )
    new.graph.value_info.extend(one for one in graph.value_info if one.name in given)
    return new


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, with its weights in a file beside it where one message cannot hold them."""
    size = sum(len(one.raw_data) for one in model.graph.initializer)
    is_large = size > _LARGEST
    onnx.save(model, path, save_as_external_data=is_large, location=f"{path.name}.data")
