"""A flat record of one run: which call made each value, which calls read it, in which module."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
MATRIX_PRODUCTS = {"matmul", "mm", "__matmul__"}
PRODUCTS = {"mul", "mul_", "div", "div_", "true_divide", "__mul__", "__rmul__", "__imul__"}


@dataclass(eq=False)
class Node:
    """One value that depends on the input, and the call that made it."""

    name: str
    path: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: list["Node"] = field(default_factory=list)
    readers: list["Node"] = field(default_factory=list)
    size: int = 0
    is_live: bool = False

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Tape(TorchFunctionMode):
    """Records the calls of torch functions on values that depend on the input."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.nodes = [Node("input") for _ in inputs]
        self.present = {id(x): node for x, node in zip(inputs, self.nodes, strict=True)}
        self.kept: list[Any] = list(inputs)  # an id stands for one tensor as long as it lives
        self.paths = [""]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        read = list(self.nodes_of((args, kwargs)))  # before an in-place call changes them
        result = func(*args, **kwargs)
        written = args[0] if func is Tensor.__setitem__ else result
        if read and tree_tensors(written):
            self.record(getattr(func, "__name__", str(func)), args, kwargs, read, written)
        return result

    def nodes_of(self, value: Any) -> Iterator[Node]:
        known = (self.present.get(id(tensor)) for tensor in tree_tensors(value))
        return (node for node in dict.fromkeys(known) if node is not None)

    def record(self, name, args, kwargs, read, result) -> None:
        found = tree_tensors(result)
        size = sum(tensor.numel() for tensor in found)
        node = self.add(Node(name, self.paths[-1], args, kwargs, read, size=size))
        self.kept.append((args, kwargs, result))
        for tensor in found:
            several = len(found) > 1
            piece = self.add(Node("piece", self.paths[-1], inputs=[node])) if several else node
            self.present[id(tensor)] = piece

    def add(self, node: Node) -> Node:
        self.nodes.append(node)
        for source in node.inputs:
            source.readers.append(node)
        return node

    def leave(self) -> None:
        self.paths.pop()

    def finish(self, output: Any) -> None:
        """Mark what the output depends on."""
        self.add(Node("output", inputs=list(self.nodes_of(output)), is_live=True))
        for node in reversed(self.nodes):
            if node.is_live:
                for source in node.inputs:
                    source.is_live = True


def tree_tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def record(model: nn.Module, x: Tensor) -> Tape:
    """Run a copy of a model once and return the tape."""
    twin, x = copy.deepcopy(model), x.clone()
    tape = Tape([x])
    for path, module in twin.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: tape.paths.append(path))
        module.register_forward_hook(lambda *_: tape.leave())
    with torch.no_grad(), tape:
        output = twin(x)
    tape.finish(output)
    return tape


def executed(model: nn.Module, x: Tensor) -> Counter[str]:
    """Count ``convs``, ``linears``, ``norms``, ``scales``, ``adds`` and ``macs`` of one run.

    Calls of functions count as much as modules; what is done to weights alone does not. A
    standalone BatchNorm or product with a constant costs one multiply-add for each of its values.
    """
    counts: Counter[str] = Counter()
    for node in record(model, x).nodes:
        if node.name in CONVOLUTIONS:
            counts.update(convs=1, macs=node.size * node.argument(1, "weight")[0].numel())
        elif node.name in TRANSPOSED:
            read = node.argument(0, "input").numel()
            counts.update(convs=1, macs=read * node.argument(1, "weight")[0].numel())
        elif _products_of_each(node):
            counts.update(linears=1, macs=node.size * _products_of_each(node))
        elif node.name == "batch_norm":
            counts.update(norms=1, macs=node.size)
        elif node.name in PRODUCTS and not is_product_of_values(node):
            counts.update(scales=1, macs=node.size)
        elif node.name in ADDITIONS:
            counts.update(adds=1)
    return counts


def _products_of_each(node: Node) -> int:
    """Count the products of each value of a linear layer, or of a product with a matrix."""
    if node.name == "linear":
        return node.argument(1, "weight").shape[-1]
    matrix = node.argument(1, "other") if node.name in MATRIX_PRODUCTS else None
    is_constant = len(node.inputs) == 1 and isinstance(matrix, Tensor) and matrix.ndim == 2
    return matrix.shape[0] if is_constant else 0


def is_product_of_values(node: Node) -> bool:
    """Tell whether a product reads two values, or the same value twice."""
    return len(node.inputs) > 1 or (len(node.args) > 1 and node.args[0] is node.args[1])
