"""Read an ONNX file, and refuse what is none or what could not be folded with proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from repblocks.errors import ConfigurationError

_OLDEST_OPSET = 7
_STANDARD = ("", "ai.onnx")
_RANDOM = ("Bernoulli", "Multinomial")


def read_model(path: Path) -> onnx.ModelProto:
    """Load a file with its external data, and check it.

    Raises:
        ConfigurationError: if there is no such file, it is no valid ONNX model, its external data
            is missing, or it holds what is not folded.
    """
    if not path.is_file():
        raise ConfigurationError(f"There is no ONNX file at {path}. Give onnx=FILE.")
    model = _parsed(path)
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.absolute().parent))
    except Exception as error:  # whatever onnx raises for a path or a length that does not fit
        raise ConfigurationError(
            f"{path} keeps weights in files beside it, which cannot be read: {_line(error)} Put "
            "all files of the model into one folder."
        ) from error
    try:
        onnx.checker.check_model(path)  # of a file it takes any size
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no valid ONNX model: {_line(error)}") from error
    _check_kind(path, model)
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # it has none

    try:
        # Whatever the name ends in: onnx would guess other formats from that.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ConfigurationError(
            f"{path} is no ONNX file, or only a part of one: {_line(error)} Export it again, or "
            "compare its size with that of the original."
        ) from error
    if not model.ir_version or not model.graph.output:
        raise ConfigurationError(f"{path} is no ONNX file: it holds no graph with outputs.")
    if not _is_text(model):
        raise ConfigurationError(
            f"{path} is a damaged ONNX file: a name in it is no text. Export it again, or compare "
            "it with the original."
        )
    return model


def _is_text(message: Any) -> bool:
    """Tell whether all texts in a message are UTF-8, which protobuf does not check for us."""
    for field, value in message.ListFields():
        is_one = isinstance(value, str | bytes) or not isinstance(value, Sequence)
        several = [value] if is_one else value
        if field.type == field.TYPE_STRING and not all(isinstance(one, str) for one in several):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, several)):
            return False
    return True


def _check_kind(path: Path, model: onnx.ModelProto) -> None:
    opset = opset_of(model)
    if opset is not None and opset < _OLDEST_OPSET:
        raise ConfigurationError(
            f"{path} uses opset {opset}; ONNX Runtime runs {_OLDEST_OPSET} and later. Convert it "
            "with onnx.version_converter."
        )
    if model.graph.sparse_initializer:
        raise ConfigurationError(f"{path} has sparse initializers, which are not supported.")
    constants = _truths(model.graph)
    nodes = every_node(model.graph)
    random = sorted({node.op_type for node in nodes if _is_random(node, constants)})
    if random:
        raise ConfigurationError(
            f"{path} draws random numbers ({', '.join(random)}), so two runs of it cannot be "
            "compared. Export it in evaluation mode."
        )


def _is_random(node: onnx.NodeProto, truths: Mapping[str, bool]) -> bool:
    if not is_standard(node):
        return False
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        return truths.get(node.input[2], True)
    return node.op_type.startswith("Random") or node.op_type in _RANDOM


def _truths(graph: onnx.GraphProto) -> dict[str, bool]:
    """Return the constants that are one truth value each, as Dropout reads its mode."""
    constants = {one.name: one for one in graph.initializer}
    for node in every_node(graph):
        constants |= {one.name: one for inner in graphs_of(node) for one in inner.initializer}
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return {
        name: bool(onnx.numpy_helper.to_array(one).any())
        for name, one in constants.items()
        if one.data_type == onnx.TensorProto.BOOL
    }


def opset_of(model: onnx.ModelProto) -> int | None:
    """Return the version of the standard operators, None if the model uses none of them."""
    return next((one.version for one in model.opset_import if one.domain in _STANDARD), None)


def is_standard(node: onnx.NodeProto) -> bool:
    """Tell whether a node is one of ONNX's own operators."""
    return node.domain in _STANDARD


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node: the branches of ``If``, the body of ``Loop``."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of those inside them."""
    for node in graph.node:
        yield node
        for inner in graphs_of(node):
            yield from every_node(inner)


def reads(node: onnx.NodeProto) -> list[str]:
    """Return the names a node reads, each once: its inputs, and what its graphs take from around.

    Optional inputs that are left out have no name.
    """
    names = dict.fromkeys(name for name in node.input if name)
    for graph in graphs_of(node):
        names.update(dict.fromkeys(_read_around(graph)))
    return list(names)


def _read_around(graph: onnx.GraphProto) -> Iterator[str]:
    own = {one.name for one in (*graph.input, *graph.initializer)}
    for node in graph.node:
        yield from (name for name in reads(node) if name not in own)
        own.update(node.output)
    yield from (one.name for one in graph.output if one.name not in own)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
