"""Turn one module into a graph of its own ``forward``, with layers in the place of regions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx, nn

from repblocks.folding.arguments import take_arguments, takes_one_argument
from repblocks.folding.carrying import attach
from repblocks.folding.flow import Scope, Step, is_below, join


@dataclass(frozen=True, eq=False)
class Edit:
    """One value of a graph that is given otherwise.

    Args:
        result: The node whose value it is.
        source: The node that is read instead of what ``result`` reads.
        layer: What is called on it; None for nothing.
    """

    result: fx.Node
    source: fx.Node
    layer: nn.Module | None


def as_graph(scope: Scope, edits: Sequence[Edit], gone: set[Step]) -> nn.Module:
    """Return the module of a scope as a graph with some values given otherwise.

    Submodules, parameters, buffers and plain attributes are kept, but for submodules that are no
    longer called.

    Args:
        scope: The module, which is called once; its trace is used up.
        edits: What is given otherwise.
        gone: Steps that need not run if nothing reads them.
    """
    module, graph = scope.module, scope.trace.graph
    added: dict[str, nn.Module] = {}
    given: dict[fx.Node, fx.Node] = {}
    for edit in edits:
        new = edit.source
        while new in given:
            new = given[new]
        if edit.layer is not None:
            name = _free_name(module, edit.layer, added)
            added[name] = edit.layer
            with graph.inserting_before(edit.result):
                new = graph.call_module(name, (new,))
        edit.result.replace_all_uses_with(new)
        given[edit.result] = new
    removed = _remove_unread(scope, gone)
    take_arguments(scope)
    return _module(scope, added, removed)


def _free_name(module: nn.Module, layer: nn.Module, taken: Mapping[str, Any]) -> str:
    stem = "linear" if isinstance(layer, nn.Linear) else "conv"
    names = [stem, *(f"{stem}_{number}" for number in range(1, len(taken) + 1000))]
    used = {*dir(module), *taken}
    return next(name for name in names if name not in used)


def _remove_unread(scope: Scope, gone: set[Step]) -> list[str]:
    """Remove what nothing reads any more; return the submodules that are no longer called."""
    graph = scope.trace.graph
    dropped: list[str] = []
    was_read = {node for node in graph.nodes if node.users}
    for _ in range(2):  # Checks of sizes may have read what can go in the second round.
        for node in reversed(graph.nodes):
            if node.users or node.op in ("placeholder", "output"):
                continue
            value = scope.values.get(node)
            is_check = isinstance(value, Step) and value.shape is None and not value.mutates
            if not (node in was_read or is_check or value in gone or _is_done(scope, node, gone)):
                continue
            if _changes_something(scope, node, gone):
                continue
            if node.op == "call_module":
                dropped.append(str(node.target))
            graph.erase_node(node)
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return [name for name in dropped if name not in called]


def _is_done(scope: Scope, node: fx.Node, gone: set[Step]) -> bool:
    path = join(scope.path, str(node.target))
    return node.op == "call_module" and any(is_below(step.path, path) for step in gone)


def _changes_something(scope: Scope, node: fx.Node, gone: set[Step]) -> bool:
    """Tell whether a node, or what it calls, changes in place what others may read."""
    value = scope.values.get(node)
    return isinstance(value, Step) and bool(value.mutates) and value not in gone


def _module(scope: Scope, added: Mapping[str, nn.Module], removed: Sequence[str]) -> nn.Module:
    module, graph = scope.module, scope.trace.graph
    chain = _chain(scope, added)
    if chain is not None:
        return nn.Sequential(chain).eval()
    root: dict[str, Any] = dict(added)
    calls = [str(n.target) for n in graph.nodes if n.op == "call_module" and n.target not in added]
    root.update({name: module.get_submodule(name) for name in calls})
    read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    root.update({name: scope.trace.constants[name] for name in read})
    graph._tracer_cls = fx.Tracer  # unpickling traces the generated code again
    result = fx.GraphModule(root, graph, class_name=f"Folded{type(module).__name__}")
    # The hierarchy is that of the module, not only what the graph names.
    result._modules.clear()
    result._modules.update({**module._modules, **added})
    for name in removed:
        result.delete_submodule(name)
    for name, value in vars(module).items():
        # A graph has attributes of its own, whatever those of the module mean.
        if name not in vars(result) and not isinstance(vars(fx.GraphModule).get(name), property):
            attach(result, name, value)
    return result.eval()


def _chain(scope: Scope, added: Mapping[str, nn.Module]) -> OrderedDict[str, nn.Module] | None:
    """Return the submodules that a graph calls one after the other, if it does nothing else."""
    if scope.parent is None and not takes_one_argument(scope):
        return None
    *nodes, output = scope.trace.graph.nodes
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for before, node in pairwise(nodes):
        name = str(node.target)
        if node.op != "call_module" or node.args != (before,) or node.kwargs or "." in name:
            return None
        found[name] = added[name] if name in added else scope.module.get_submodule(name)
    is_chain = len(found) == len(nodes) - 1 and output.args == (nodes[-1],)
    return found if is_chain and nodes[0].op == "placeholder" else None
