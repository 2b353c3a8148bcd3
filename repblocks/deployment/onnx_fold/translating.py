"""From an ONNX graph to a torch module that computes the same, one module a node."""

from __future__ import annotations

import keyword
import operator
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from repblocks.deployment.onnx_fold import layers, moving  # noqa: F401 # fill the table
from repblocks.deployment.onnx_fold.inputs import Spec
from repblocks.deployment.onnx_fold.modules import NODE, PART, Binary, Call, Reshape
from repblocks.deployment.onnx_fold.operators import Node, module_of
from repblocks.deployment.onnx_fold.reading import (
    attributes_of,
    graphs_of,
    is_standard,
    opset_of,
    reads,
)
from repblocks.deployment.onnx_fold.single import Operator
from repblocks.deployment.onnx_fold.surveying import constant_value, inferred_shapes, live_nodes
from repblocks.errors import ConfigurationError, NotFoldable

#: What a report names if it is not looked into.
_LAYERS = {"Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul"}
#: Names that a module has for itself.
_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
#: Words that the code of a graph uses, besides those of Python; case and underscores do not count.
_WORDS = {"self", "none", "true", "false"}
_QUANTIZING = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


@dataclass(frozen=True, eq=False)
class Kept:
    """A node of a kind that can be folded, which is not looked into.

    Args:
        name: The node.
        op_type: Its kind.
        reason: Why.
    """

    name: str
    op_type: str
    reason: str


@dataclass(eq=False)
class Translation:
    """An ONNX graph as a torch module.

    Args:
        model: The file.
        module: From the graph's inputs to those of its outputs that depend on them.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        modules: By the place of a node in the file, the module that stands for it.
        ranks: By name, the number of axes of each activation.
        padded: The places of convolutions whose padding is a module of its own.
        casts: Constants that take the type of an activation, by name.
        kept: What might have been looked into, and is not.
    """

    model: onnx.ModelProto
    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    modules: dict[int, nn.Module]
    ranks: dict[str, int]
    padded: set[int]
    casts: dict[str, np.ndarray]
    kept: list[Kept]

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in."""
        found = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return next(found, torch.float32)

    def name_of(self, path: str) -> str:
        """Return the name that the node of a module has in the file; its first output's if none."""
        own = vars(self.module.get_submodule(path))
        place = own.get(NODE, own.get(PART))
        if place is None:
            return path
        node = self.model.graph.node[place]
        return node.name or node.output[0]


def translate(
    model: onnx.ModelProto, specs: Sequence[Spec], example: Sequence[Tensor]
) -> Translation:
    """Translate a graph, which is run once on an example on the way.

    Raises:
        ConfigurationError: if no output depends on an input, or a node cannot be run alone.
    """
    translator = _Translator(model, specs, example)
    with torch.no_grad():
        translator.run()
    return translator.finish()


class _Translator:
    def __init__(
        self, model: onnx.ModelProto, specs: Sequence[Spec], example: Sequence[Tensor]
    ) -> None:
        self._model = model
        self._opset = opset_of(model) or 0
        self._graph, self._root = fx.Graph(), nn.Module()
        self._inputs = tuple(spec.name for spec in specs)
        self._constants = {
            one.name: numpy_helper.to_array(one) for one in self._model.graph.initializer
        }
        self._quantized: set[str] = set()
        self._nodes: dict[str, fx.Node] = {}
        self._examples: dict[str, Any] = {}
        self._ranks: dict[str, int] = {}
        self._modules: dict[int, nn.Module] = {}
        self._padded: set[int] = set()
        self._casts: dict[str, np.ndarray] = {}
        self._kept: list[Kept] = []
        self._shapes = inferred_shapes(model)
        read = enumerate(self._shapes.get(self._inputs[0], ()))
        self._axes = {size: axis for axis, size in read if isinstance(size, str)}
        self._left = live_nodes(model.graph)
        self._readers = Counter(name for _, node in self._left for name in reads(node))
        self._readers.update([*(one.name for one in model.graph.output), self._inputs[0]])
        for number, (name, value) in enumerate(zip(self._inputs, example, strict=True)):
            self._give(name, self._graph.placeholder(f"input_{number}"), value)

    def run(self) -> None:
        """Translate node after node, and run each."""
        for place, node in self._left:
            if self._is_cast_constant(node):
                self._cast(node)
            elif any(name in self._nodes for name in reads(node)):
                self._translate(place, node)
            else:
                self._evaluate(node)
            for name in reads(node):
                self._readers[name] -= 1
                if not self._readers[name]:
                    self._examples.pop(name, None)

    def finish(self) -> Translation:
        """Return the whole."""
        names = (one.name for one in self._model.graph.output)
        outputs = tuple(name for name in names if name in self._nodes)
        if not outputs:
            raise ConfigurationError("No output of the ONNX graph depends on an input.")
        values = tuple(self._nodes[name] for name in outputs)
        self._graph.output(values if len(values) > 1 else values[0])
        module = fx.GraphModule(self._root, self._graph, class_name="OnnxGraph").eval()
        return Translation(
            self._model,
            module,
            self._inputs,
            outputs,
            self._modules,
            self._ranks,
            self._padded,
            self._casts,
            self._kept,
        )

    def _give(self, name: str, node: fx.Node, value: Any) -> None:
        self._nodes[name], self._examples[name] = node, value
        self._ranks[name] = value.ndim if isinstance(value, Tensor) else 0

    def _is_cast_constant(self, node: onnx.NodeProto) -> bool:
        """Tell whether a constant takes the type of an activation, which is known."""
        return node.op_type == "CastLike" and {*node.input} & {*self._constants} == {node.input[0]}

    def _cast(self, node: onnx.NodeProto) -> None:
        """Compute such a constant."""
        value = torch.from_numpy(np.array(self._constants[node.input[0]]))
        cast = value.to(self._examples[node.input[1]].dtype)
        self._constants[node.output[0]] = self._casts[node.output[0]] = cast.numpy()

    def _evaluate(self, node: onnx.NodeProto) -> None:
        """Compute what reads constants only."""
        read = {name: self._constants[name] for name in reads(node)}
        given = constant_value(node)
        found = [given] if given is not None else Operator(node, [], read, self._model).evaluate()
        names = [name for name in node.output if name]
        self._constants.update(zip(names, found, strict=True))
        if node.op_type in _QUANTIZING or not self._quantized.isdisjoint(read):
            self._quantized.update(names)

    def _translate(self, place: int, node: onnx.NodeProto) -> None:
        name = self._free_name(node)
        try:
            module = self._module(node)
            operands = [one for one in node.input if one in self._nodes]
        except NotFoldable as error:
            if is_standard(node) and node.op_type in _LAYERS:
                self._kept.append(Kept(node.name or node.output[0], node.op_type, error.reason))
            operands = [one for one in reads(node) if one in self._nodes]
            constants = {n: self._constants[n] for n in reads(node) if n not in self._nodes}
            module = Call(Operator(node, operands, constants, self._model))
        if isinstance(module, Reshape) and module.copied:
            operands.append(self._inputs[0])
        values = [(self._nodes[one], self._examples[one]) for one in operands]
        result, value = self._called(name, module, place, values)
        self._take(node, result, value)

    def _module(self, node: onnx.NodeProto) -> nn.Module:
        """Return the module of an operator that may be folded."""
        if not is_standard(node) or any(graphs_of(node)):
            raise NotFoldable("")
        if node.op_type != "Split" and any(self._readers[name] for name in node.output[1:] if name):
            raise NotFoldable("Several of its outputs are read.")
        if not self._quantized.isdisjoint(node.input):
            raise NotFoldable("Its weights are quantized.")
        read = [None if name in self._nodes else self._constants.get(name) for name in node.input]
        return module_of(
            Node(
                node,
                attributes_of(node),
                read,
                [self._examples.get(name) for name in node.input],
                self._opset,
                self._shapes.get(node.output[0]),
                self._shapes.get(node.input[0]),
                self._axes,
            )
        )

    def _called(
        self, name: str, module: nn.Module, place: int, values: Sequence[tuple[fx.Node, Any]]
    ) -> tuple[fx.Node, Any]:
        """Write down a call of a module; what stands for parts of a node are several modules."""
        if isinstance(module, nn.Sequential):  # padding, and what reads it
            self._padded.add(place)
            values = [self._part(f"{name}_pad", module[0], place, values)]
            module = module[1]
        if isinstance(module, Binary):
            while len(values) > 2:
                part = f"{name}_{len(values)}"
                first = self._part(part, Binary(module.function).eval(), place, values[:2])
                values = [first, *values[2:]]
        self._modules[place] = module
        setattr(module, NODE, place)
        return self._call(name, module, values)

    def _part(
        self, name: str, module: nn.Module, place: int, values: Sequence[tuple[fx.Node, Any]]
    ) -> tuple[fx.Node, Any]:
        setattr(module, PART, place)
        return self._call(name, module, values)

    def _call(
        self, name: str, module: nn.Module, values: Sequence[tuple[fx.Node, Any]]
    ) -> tuple[fx.Node, Any]:
        self._root.add_module(name, module)
        value = module(*(value for _, value in values))
        return self._graph.call_module(name, tuple(node for node, _ in values)), value

    def _take(self, node: onnx.NodeProto, result: fx.Node, value: Any) -> None:
        """Note the outputs of a node that are read."""
        names = [name for name in node.output if name]
        if not isinstance(value, tuple):
            self._give(names[0], result, value)
            return
        for number, name in enumerate(names):
            if self._readers[name]:
                item = self._graph.call_function(operator.getitem, (result, number))
                self._give(name, item, value[number])

    def _free_name(self, node: onnx.NodeProto) -> str:
        """Name a module after its node, as Python and torch allow."""
        stem = re.sub(r"\W+", "_", node.name or node.output[0]).strip("_") or node.op_type
        word = stem.strip("_").lower()
        is_word = keyword.iskeyword(word) or word in _WORDS
        stem = f"n{stem}" if stem[0].isdigit() or is_word else stem
        names = chain([stem], (f"{stem}_{number}" for number in count(1)))
        return next(n for n in names if n not in _TAKEN and n not in self._root._modules)
