"""Check why a BatchNorm was left, on a flat record of one run and without any part of the fold.

From the BatchNorm one walks back to the convolutions and linear layers that would take it in, and
forward to those that read it, through everything that is affine. A direction is closed if
something stands in the way. A BatchNorm may stay if both directions are closed, and its reason is
true if it is one of the things found.

Of axes the walk knows only whether any were turned: a linear layer behind none reads another axis
than the BatchNorm's, and could take it in only as a layer over both, which costs more.
"""

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import accumulate

from call_tape import (
    ADDITIONS,
    CONVOLUTIONS,
    PRODUCTS,
    TRANSPOSED,
    Node,
    Tape,
    is_product_of_values,
    record,
)
from torch import Tensor, fx, nn

from repblocks.folding.fold_report import FoldReport, LeftAlone, Reason

Walls = set[Reason]

TURNS = {"permute", "transpose", "movedim", "swapaxes"}
ABSORBING = {*CONVOLUTIONS, *TRANSPOSED, "linear"}
POOLS = {"avg_pool1d", "avg_pool2d", "avg_pool3d"}
SUMS = {*ADDITIONS, "sub", "sub_", "__rsub__", "rsub", "stack"}
SLICES = {"__getitem__", "piece", "chunk", "split", "tensor_split", "narrow", "unbind"}
MOVES = {
    *["view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze"],
    *["unsqueeze", "contiguous", "clone", "to", "type_as", "float", "double", "expand"],
    *["dropout", "neg", "batch_norm", "cat", "concat", "mean", "sum", "adaptive_avg_pool1d"],
    *["adaptive_avg_pool2d", "adaptive_avg_pool3d"],
}


CALLED = {*ABSORBING, "batch_norm"}


def false_reasons(model: nn.Module, x: Tensor, report: FoldReport, left: int) -> list[str]:
    """Name each BatchNorm of a report whose reason is not true, and any that has none.

    Args:
        model: The original, in evaluation mode.
        x: The example input.
        report: What the fold says.
        left: Number of BatchNorms that the folded model executes.
    """
    tape = record(model, x)
    norms = {node.path: node for node in tape.nodes if node.name == "batch_norm"}
    stated = [one for one in report.left if one.site in norms]
    false = [why for one in stated for why in refute(model, tape, norms[one.site], one)]
    if len(stated) != left:
        false.append(f"{left} BatchNorms are left, {len(stated)} have a reason")
    return false


def refute(model: nn.Module, tape: Tape, norm: Node, left: LeftAlone) -> Iterator[str]:
    """Yield why a reason is not true, if it is not."""
    if norm.argument(1, "running_mean") is None or norm.argument(5, "training", False):
        if left.reason is not Reason.STATISTICS:
            yield f"{left.site}: {left.reason!r}, but it has no statistics"
        return
    walk = Walk(model, norm, Counter(n.path for n in tape.nodes if n.name in CALLED))
    before, after = walk.before(norm.inputs[0], norm), walk.after(norm)
    if not before:
        yield f"{left.site}: {left.reason!r}, but the layers before it could take it in"
    elif not after:
        yield f"{left.site}: {left.reason!r}, but the layers after it could take it in"
    elif left.reason not in before | after:
        yield f"{left.site}: {left.reason!r}, but in the way are {sorted(before | after)}"


class Walk:
    """Walks from one BatchNorm through affine operations, and collects what is in the way."""

    def __init__(self, model: nn.Module, norm: Node, calls: Counter[str]) -> None:
        self.model, self.norm = model, norm
        self.calls = calls

    def before(self, node: Node, reader: Node, turned: bool = False) -> Walls:
        """Return what keeps a per-channel map of ``node``'s value from the layers that made it."""
        walls = {Reason.OTHER_READER} if has_other_readers(node, reader) else set()
        if node.name in ABSORBING:
            return walls | self.of_layer(node, turned)
        if not is_affine(node):
            return walls | {Reason.NONLINEARITY} | self.hidden(node)
        if is_padded(node):
            walls.add(Reason.PADDING)
        turned |= node.name in TURNS
        return walls.union(*(self.before(source, node, turned) for source in node.inputs))

    def after(self, node: Node, turned: bool = False) -> Walls:
        """Return what keeps a per-channel map from the layers that read ``node``'s value."""
        readers = [reader for reader in node.readers if reader.is_live]
        walls = set().union(*(self.into(reader, turned) for reader in readers))
        if walls and len(readers) > 1:
            walls.add(Reason.OTHER_READER)
        return walls

    def into(self, reader: Node, turned: bool) -> Walls:
        if not is_affine(reader) and reader.name not in ABSORBING:
            return {Reason.NONLINEARITY} | self.hidden(reader)
        walls = {Reason.PADDING} if is_padded(reader) else set()
        if reader.name in ABSORBING:
            return walls | self.of_layer(reader, turned)
        if len(reader.inputs) > 1 and reader.name in SUMS:
            walls.add(Reason.COST)
        return walls | self.after(reader, turned or reader.name in TURNS)

    def of_layer(self, layer: Node, turned: bool) -> Walls:
        """Return what keeps a layer from taking the BatchNorm in."""
        walls = self.hidden(layer)
        if self.calls[self.norm.path] > 1 or self.calls[layer.path] > 1:
            walls.add(Reason.OTHER_READER)
        if layer.name == "linear" and layer.argument(0, "input").ndim > 2 and not turned:
            walls.add(Reason.COST)
        return walls

    def hidden(self, node: Node) -> Walls:
        """Tell whether what cannot be traced stands between node and norm."""
        shared = set(prefixes(node.path)) & set(prefixes(self.norm.path))
        apart = (set(prefixes(node.path)) | set(prefixes(self.norm.path))) - shared
        between = {max(shared, key=len), *apart}
        opaque = any(is_opaque(self.model.get_submodule(p)) for p in between)
        return {Reason.OPAQUE} if opaque else set()


def prefixes(path: str) -> Iterable[str]:
    return ["", *accumulate(path.split("."), "{}.{}".format)] if path else [""]


def has_other_readers(node: Node, reader: Node) -> bool:
    """Tell whether anything else needs the value; slices of it may be of other channels."""
    live = {other for other in node.readers if other.is_live}
    return live != {reader} and not all(other.name in SLICES for other in live)


def is_affine(node: Node) -> bool:
    if node.name in PRODUCTS:
        return not is_product_of_values(node)
    return node.name in SUMS | SLICES | MOVES | POOLS | {"pad"}


def is_padded(node: Node) -> bool:
    """Tell whether a call puts zeros, or another constant, around what it reads."""
    if node.name == "pad":
        return node.argument(2, "mode", "constant") == "constant"
    if node.name in TRANSPOSED:
        return max(node.argument(1, "weight").shape[2:]) > 1
    if node.name == "linear" or node.name not in ABSORBING | POOLS:
        return False
    padding = node.argument(4 if node.name in ABSORBING else 3, "padding", 0)
    if isinstance(padding, str):
        return padding == "same" and max(node.argument(1, "weight").shape[2:]) > 1
    return any(padding) if isinstance(padding, tuple | list) else padding > 0


class OwnOperations(fx.Tracer):
    """Traces one forward: children stay calls, parameters and buffers stay tensors."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True

    def getattr(self, attr, attr_val, parameter_proxy_cache):  # noqa: ARG002
        return attr_val


@cache
def is_opaque(module: nn.Module) -> bool:
    """Tell whether a module's own forward cannot be traced, or whether it has hooks."""
    if type(module).__module__.startswith("torch.nn"):
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return True
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        OwnOperations().trace(module, defaults)
    except Exception:  # noqa: BLE001  # whatever a forward raises on a stand-in
        return True
    return False
