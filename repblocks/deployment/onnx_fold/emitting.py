"""From a folded torch module back to ONNX nodes: new layers, and the other nodes as they were.

Values are objects here; :mod:`repblocks.deployment.onnx_fold.writing` gives them names.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from torch import fx, nn

from repblocks.deployment.onnx_fold.modules import NODE, PART, Binary, Call
from repblocks.deployment.onnx_fold.reading import reads
from repblocks.deployment.onnx_fold.translating import Translation
from repblocks.errors import RepblocksError

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PADS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(eq=False)
class Value:
    """A value of the new graph.

    Args:
        rank: Number of its axes.
        name: Empty until it is given one.
    """

    rank: int
    name: str = ""


@dataclass(eq=False)
class Padded:
    """A value with zeros around it, ``low`` and ``high`` on each axis after the channels."""

    value: Value
    low: tuple[int, ...]
    high: tuple[int, ...]


@dataclass(eq=False)
class Partial:
    """The sum of the first terms of a longer one."""

    terms: tuple[Value, ...]


@dataclass(eq=False)
class Emitted:
    """A node of the new graph.

    Args:
        proto: The node, with names that hold in it only.
        reads: The values that it reads, by those names; what is not in it are constants.
        gives: The values that it gives, likewise.
        weights: New constants by those names.
        is_new: Whether it is no node of the old graph.
    """

    proto: onnx.NodeProto
    reads: dict[str, Value]
    gives: dict[str, Value]
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    is_new: bool = False


def emit(translation: Translation, folded: nn.Module) -> tuple[list[Emitted], list[Value]]:
    """Return the nodes that compute a folded module, in order, and the values of the outputs.

    The values of the inputs have their names.

    Raises:
        RepblocksError: if something in it has no ONNX node.
    """
    emission = _Emission(translation)
    inputs = [Value(translation.ranks[name], name) for name in translation.inputs]
    given = emission.of(folded, inputs)
    outputs = list(given) if isinstance(given, tuple) else [given]
    return list(_live(emission.nodes, outputs))[::-1], outputs


def _live(nodes: Sequence[Emitted], outputs: Sequence[Value]) -> Iterator[Emitted]:
    needed = set(outputs)
    for node in reversed(nodes):
        if not needed.isdisjoint(node.gives.values()):
            needed.update(node.reads.values())
            yield node


class _Emission:
    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self.nodes: list[Emitted] = []

    def of(self, module: nn.Module, args: Sequence[Any]) -> Any:
        """Write a module down, and return its values."""
        place = vars(module).get(NODE)
        if place is not None and type(module) is type(self._translation.modules[place]):
            return self._old(place, module, args)
        if PART in vars(module) or isinstance(module, _PADS):
            return _part(module, args)
        if isinstance(module, nn.Identity):
            return args[0]
        if isinstance(module, nn.Sequential):
            for child in module:
                args = [self.of(child, args)]
            return args[0]
        if isinstance(module, fx.GraphModule):
            return _Inside(module, self).run(*args)
        return self._new(module, args[0])

    def _old(self, place: int, module: nn.Module, args: Sequence[Any]) -> Any:
        """Keep a node of the file."""
        proto = self._translation.model.graph.node[place]
        if place in self._translation.padded:
            if not isinstance(args[0], Padded):
                return self._new(module, args[0])
            args = [args[0].value]
        if any(isinstance(one, Partial) for one in args):
            args = [term for one in args for term in _terms(one)]
        given = {name: Value(self._rank(name)) for name in proto.output if name}
        names = [name for name in reads(proto) if name in self._translation.ranks]
        if not isinstance(module, Call):  # what is read twice is given twice
            names = [name for name in proto.input if name in self._translation.ranks]
        if len(args) < len(names):  # some terms of a sum are one now
            names = [f"term_{number}" for number in range(len(args))]
            proto = helper.make_node(proto.op_type, names, proto.output, proto.name)
        reads_them = dict(zip(names, args, strict=False))  # a reshape is given more than it reads
        self.nodes.append(Emitted(proto, reads_them, given))
        several = tuple(given.values())
        is_several = isinstance(module, Call) or proto.op_type == "Split"
        return several if is_several and len(several) > 1 else several[0]

    def _rank(self, name: str) -> int:
        return self._translation.ranks.get(name, 0)

    def _new(self, module: nn.Module, read: Value | Padded) -> Value:
        """Write a new layer down."""
        value = read.value if isinstance(read, Padded) else read
        given = Value(value.rank)
        # Before opset 11 a Gemm has a bias.
        if isinstance(module, nn.Linear) and (value.rank != 2 or module.bias is None):
            nodes = _products(module)
        elif isinstance(module, nn.Linear):
            nodes = [_with_weights(module, "Gemm", transB=1)]
        elif isinstance(module, _CONVS) and module.padding_mode == "zeros":
            nodes = [_with_weights(module, "Conv", **_geometry(module, read))]
        elif isinstance(module, _TRANSPOSED):
            sizes = {**_geometry(module, read), "output_padding": list(module.output_padding)}
            nodes = [_with_weights(module, "ConvTranspose", **sizes)]
        else:
            raise RepblocksError(f"There is no ONNX node for a folded {type(module).__name__}.")
        if isinstance(read, Padded) and not isinstance(module, _CONVS):
            raise RepblocksError(f"A folded {type(module).__name__} reads what is padded.")
        for number, (proto, weights) in enumerate(nodes, 1):
            result = given if number == len(nodes) else Value(value.rank)
            self.nodes.append(Emitted(proto, {"x": value}, {"y": result}, weights, is_new=True))
            value = result
        return given


class _Inside(fx.Interpreter):
    """Writes down what a graph of modules does."""

    def __init__(self, module: fx.GraphModule, emission: _Emission) -> None:
        super().__init__(module)
        self._emission = emission

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Write a module down."""
        if kwargs:
            raise RepblocksError(f"{target} is called by names, which no ONNX node has.")
        return self._emission.of(self.module.get_submodule(str(target)), args)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Take an item of what a node gives."""
        if target is not operator.getitem or not isinstance(args[0], tuple) or kwargs:
            raise RepblocksError(f"There is no ONNX node for {target} in a folded graph.")
        return args[0][args[1]]


def _part(module: nn.Module, args: Sequence[Any]) -> Any:
    """Put off a part of a node until the node is known to stay."""
    if isinstance(module, Binary):
        return Partial(tuple(term for one in args for term in _terms(one)))
    sides = [int(side) for side in module.padding]  # type: ignore[union-attr] # a ZeroPad
    return Padded(args[0], tuple(sides[::2][::-1]), tuple(sides[1::2][::-1]))


def _terms(one: Value | Partial) -> tuple[Value, ...]:
    return one.terms if isinstance(one, Partial) else (one,)


def _geometry(module: Any, read: Value | Padded) -> dict[str, Any]:
    low = high = tuple(module.padding)
    if isinstance(read, Padded):
        low = tuple(a + b for a, b in zip(low, read.low, strict=True))
        high = tuple(a + b for a, b in zip(high, read.high, strict=True))
    return {
        "kernel_shape": list(module.kernel_size),
        "strides": list(module.stride),
        "pads": [*low, *high],
        "dilations": list(module.dilation),
        "group": module.groups,
    }


def _with_weights(
    module: Any, op_type: str, **options: Any
) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    weights = {"weight": module.weight.detach().contiguous().numpy()}
    if module.bias is not None:
        weights["bias"] = module.bias.detach().numpy()
    return helper.make_node(op_type, ["x", *weights], ["y"], **options), weights


def _products(module: nn.Linear) -> list[tuple[onnx.NodeProto, dict[str, np.ndarray]]]:
    """Return a linear layer on the last axis as a product and a sum."""
    matrix = module.weight.detach().T.contiguous().numpy()
    nodes = [(helper.make_node("MatMul", ["x", "weight"], ["y"]), {"weight": matrix})]
    if module.bias is not None:
        bias = {"bias": module.bias.detach().numpy()}
        nodes.append((helper.make_node("Add", ["x", "bias"], ["y"]), bias))
    return nodes
