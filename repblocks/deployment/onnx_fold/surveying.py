"""What an ONNX graph says of itself before it runs: what is needed, constants, shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from repblocks.deployment.onnx_fold.reading import reads


def constant_value(node: onnx.NodeProto) -> np.ndarray | None:
    """Return the value of a ``Constant``; None if it is another node, or of text or strange."""
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    kinds: dict[str, Any] = {"value_float": np.float32, "value_floats": np.float32}
    kinds |= {"value_int": np.int64, "value_ints": np.int64}
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    return np.array(value, kinds[attribute.name]) if attribute.name in kinds else None


def live_nodes(graph: onnx.GraphProto) -> list[tuple[int, onnx.NodeProto]]:
    """Return the nodes that an output depends on, with their places."""
    needed = {one.name for one in graph.output}
    found = []
    for place, node in reversed(list(enumerate(graph.node))):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
            found.append((place, node))
    return found[::-1]


def inferred_shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Return the shapes that are the same for all inputs: sizes, or their names.

    Where sizes of the inputs are free, the batch aside, they follow from those of the inputs alone:
    what such a file says of other values may be of a size that it once had.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    has_free_sizes = False
    for one in named.graph.input:
        for axis, size in enumerate(one.type.tensor_type.shape.dim):
            has_free_sizes |= axis > 0 and size.dim_value <= 0
            if size.dim_value <= 0 and not size.dim_param:
                size.dim_param = f"{one.name}_{axis}"
    if has_free_sizes:
        del named.graph.value_info[:]
        for one in named.graph.output:
            one.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(named, data_prop=True).graph
    return {
        one.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims]
        for one in (*graph.input, *graph.value_info, *graph.output)
        if one.type.tensor_type.HasField("shape")
        for dims in [one.type.tensor_type.shape.dim]
    }
