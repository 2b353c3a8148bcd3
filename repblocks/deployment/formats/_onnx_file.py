"""Look through an ONNX file before a runtime opens it: its weights have to be inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repblocks.errors import CheckpointError


def check_self_contained(path: Path) -> None:
    """Check that a file is ONNX and names no other file.

    Raises:
        CheckpointError: if it is damaged, or takes weights from another file, which may lie
            anywhere.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has errors of its own
        raise CheckpointError(f"{path} is damaged or no ONNX file: {error}.") from error
    if not model.graph.output:
        raise CheckpointError(f"{path} is damaged or no ONNX file: it has no graph.")
    outside = [tensor.name for tensor in _tensors(model) if uses_external_data(tensor)]
    if outside:
        raise CheckpointError(
            f"{path} takes {len(outside)} weights from another file ({outside[0]!r} first), and an "
            "artifact's ONNX file has its weights inside. Nothing was read. Deploy the checkpoint "
            "again."
        )


def _tensors(model: Any) -> Iterator[Any]:
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Any) -> Iterator[Any]:
    for attribute in (one for node in nodes for one in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors_of_graph(graph)
