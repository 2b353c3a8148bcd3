"""The arguments of a module that becomes a graph: all that its ``forward`` had, checked."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from repblocks.folding.flow import Scope, Step

_NAMES_OF_GRAPHS = set(dir(fx.GraphModule)) - set(dir(nn.Module))


def is_callable_as_graph(scope: Scope) -> bool:
    """Tell whether a graph can be called as the module was, and hold what the module holds."""
    if _NAMES_OF_GRAPHS & scope.module._modules.keys():
        return False
    parameters, bound = _parameters(scope), _bound(scope)
    if set(bound) - {p.name for p in parameters}:  # any number of arguments
        return False
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return False
    constants = [argument for argument in bound.values() if not _holds_steps(argument)]
    if constants and scope.parent is None and scope.path:
        return False  # code that was not traced calls it, perhaps with others
    constants += [p.default for p in parameters if p.default is not p.empty]
    return all(map(_is_simple, constants))


def takes_one_argument(scope: Scope) -> bool:
    """Tell whether a module's ``forward`` takes an activation and nothing else."""
    return len(inspect.signature(scope.module.forward).parameters) == 1


def take_arguments(scope: Scope) -> None:
    """Give the graph the parameters of the ``forward`` that it replaces.

    An argument of the model that is no activation must be what it was when it was traced.
    """
    graph, bound = scope.trace.graph, _bound(scope)
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        new = {
            p.name: graph.placeholder(p.name, default_value=p.default) for p in _parameters(scope)
        }
        # In the order of the call, as the placeholders of the trace are.
        given = [*list(bound)[: len(scope.args)], *scope.kwargs]
        nodes = [node for name in given for node in _activations(graph, new[name], bound[name])]
        for old, node in zip(scope.trace.placeholders, nodes, strict=True):
            old.replace_all_uses_with(node)
            graph.erase_node(old)
        for parameter in _parameters(scope):
            argument = bound.get(parameter.name, parameter.default)
            if scope.parent is None and not _holds_steps(argument):
                _require(graph, new[parameter.name], parameter.name, argument)


def _activations(graph: fx.Graph, placeholder: fx.Node, argument: Any) -> list[fx.Node]:
    if isinstance(argument, Step):
        return [placeholder]
    places = range(len(argument)) if _holds_steps(argument) else ()
    return [graph.call_function(_getitem, (placeholder, place)) for place in places]


def _parameters(scope: Scope) -> list[inspect.Parameter]:
    """Return the parameters of a module, but for those that take any number of arguments."""
    parameters = inspect.signature(scope.module.forward).parameters.values()
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _bound(scope: Scope) -> dict[str, Any]:
    """Return what a module was called with, by the names of its parameters."""
    signature = inspect.signature(scope.module.forward)
    return dict(signature.bind(*scope.args, **scope.kwargs).arguments)


def _holds_steps(argument: Any) -> bool:
    if isinstance(argument, tuple | list):
        return bool(argument) and all(isinstance(part, Step) for part in argument)
    return isinstance(argument, Step)


def _is_simple(constant: Any) -> bool:
    """Tell whether a constant can stand in the code of a graph."""
    if isinstance(constant, tuple | list):
        return all(map(_is_simple, constant))
    return constant is None or isinstance(constant, bool | int | float | str)


def _require(graph: fx.Graph, placeholder: fx.Node, name: str, traced: Any) -> None:
    """Let the graph check an argument."""
    is_same = graph.call_function(operator.eq, (placeholder, traced))
    message = f"The model was folded for {name}={traced!r}; fold it again to call it otherwise."
    graph.call_function(torch._assert, (is_same, message))


def _getitem(values: Sequence[Any], place: int) -> Any:
    return values[place]
