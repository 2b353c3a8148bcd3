"""ONNX graphs as other frameworks write them, built node by node."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS = {np.float16: TensorProto.FLOAT16, np.float32: TensorProto.FLOAT}
FLOATS[np.float64] = TensorProto.DOUBLE


class Graph:
    """Adds nodes one by one; each method returns the name of the value."""

    def __init__(self, opset=13, dtype=np.float32, ir_version=8):
        self.opset, self.dtype, self.ir_version = opset, dtype, ir_version
        self.nodes, self.constants, self.inputs, self.outputs = [], [], [], []
        self.random = np.random.default_rng(0)

    def input(self, *sizes, name="x", kind=None):
        kind = FLOATS[self.dtype] if kind is None else kind
        self.inputs.append(helper.make_tensor_value_info(name, kind, sizes))
        return name

    def constant(self, values, name=""):
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, *sizes, scale=None, name=""):
        scale = scale or np.prod(sizes[1:] or (4,)) ** -0.5
        return self.constant((scale * self.random.normal(size=sizes)).astype(self.dtype), name)

    def add(self, op_type, *inputs, outputs=1, **options):
        names = [f"{op_type.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, names, name, **options))
        return names[0] if outputs == 1 else names

    def conv(self, x, channels_in, channels_out, k=3, *, bias=False, ndim=2, group=1, **options):
        weight = self.weight(channels_out, channels_in // group, *(k,) * ndim)
        shift = [self.weight(channels_out)] if bias else []
        options = {"pads": [k // 2] * (2 * ndim), **options}
        if options["pads"] is None:
            options.pop("pads")
        return self.add("Conv", x, weight, *shift, group=group, **options)

    def norm(self, x, channels, **options):
        draw = self.random
        values = (
            draw.uniform(0.5, 1.5, channels) * draw.choice([-1, 1], channels),
            draw.normal(size=channels),
            draw.normal(size=channels) * 0.3,
            draw.uniform(0.5, 2.0, channels),
        )
        constants = [self.constant(one.astype(self.dtype)) for one in values]
        return self.add("BatchNormalization", x, *constants, **options)

    def output(self, *names, rank=4):
        kind, shape = FLOATS[self.dtype], (None,) * rank
        self.outputs += [helper.make_tensor_value_info(name, kind, shape) for name in names]

    def model(self, *, functions=(), domains=(), constants_are_inputs=False):
        inputs = list(self.inputs)
        if constants_are_inputs:
            inputs += [
                helper.make_tensor_value_info(one.name, one.data_type, one.dims)
                for one in self.constants
            ]
        graph = helper.make_graph(self.nodes, "graph", inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in domains]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=self.ir_version, functions=functions
        )

    def save(self, path, **options):
        onnx.save(self.model(**options), path)
        return path


def kinds(path):
    """Count the nodes of a file by kind."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    names = [node.op_type for node in nodes]
    return {name: names.count(name) for name in sorted(set(names))}


def repvgg_unit(graph, x, channels, **options):
    """Add three branches with their norms, their sum and a Relu."""
    three = graph.norm(graph.conv(x, channels, channels, **options), channels)
    one = graph.norm(graph.conv(x, channels, channels, 1, **options), channels)
    total = graph.add("Add", graph.add("Add", three, one), graph.norm(x, channels))
    return graph.add("Relu", total)
