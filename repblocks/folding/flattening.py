"""Write a model down as one flat list of steps, module by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from repblocks.algebra.rules import has_rule
from repblocks.folding.flow import INPUT, Flow, Scope, Step, call, has_hooks, join, steps_in
from repblocks.folding.tracing import Activation, RankError, Tracing
from repblocks.folding.watching import Watch


@dataclass(frozen=True)
class Known:
    """What is known of modules before they are traced, by their identity.

    Args:
        apart: Those that have a program of their own.
        refused: Those that are not to be looked into, and why.
    """

    apart: Set[int] = frozenset()
    refused: Mapping[int, str] = field(default_factory=dict)


NOTHING = Known()


def flatten(
    path: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    problem: str = "",
    known: Known = NOTHING,
    examples: Mapping[int, Sequence[Any]] | None = None,
) -> Flow:
    """Write down what ``module(*args, **kwargs)`` does; tensors among the arguments are inputs.

    A module whose code cannot be traced, or for which a problem is given, is one opaque step, whose
    ``problem`` says why; so is each call of a module that has a program apart, or is refused.
    Examples are values of the activations that modules read, by the identity of those.
    """
    builder = _Builder(known, examples or {})
    args, kwargs = map_aggregate((args, dict(kwargs)), builder.as_input)
    if problem:
        output = builder.opaque(module, args, kwargs, path, None, problem)
        return Flow(path, builder.steps, output, builder.watch)
    output = builder.tracing.during(module, lambda: builder.visit(path, module, args, kwargs, None))
    return Flow(path, builder.steps, output, builder.watch)


#: Modules of torch that only name others or a view; without a GPU, DataParallel is one too.
_ONLY_NAMES = (nn.Sequential, nn.Flatten, nn.Unflatten, nn.DataParallel, fx.GraphModule)


class _Builder:
    def __init__(self, known: Known, examples: Mapping[int, Sequence[Any]]) -> None:
        self._examples = examples
        self.steps: list[Step] = []
        self._known = known
        self.watch = Watch()
        self.tracing = Tracing(self.watch)

    def as_input(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor | Activation) or isinstance(leaf, nn.Parameter):
            return leaf
        step = self._step(INPUT, (), {}, "", None)
        step.value = leaf if isinstance(leaf, Tensor) else None
        return step

    def enter(
        self,
        path: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        parent: Scope | None,
    ) -> Scope:
        symbolic = map_aggregate((args, dict(kwargs)), _symbol)
        found = self.tracing.of(module, *symbolic, self._examples.get(id(module)))
        scope = Scope(path, module, found, args, kwargs, parent)
        given = steps_in((args, dict(kwargs)))
        scope.values.update(zip(found.placeholders, given, strict=True))
        for node in found.graph.nodes:
            if node.op != "placeholder":
                scope.values[node] = self._evaluate(scope, node)
        return scope

    def _evaluate(self, scope: Scope, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return scope.trace.constants[str(node.target)]
        args, kwargs = map_aggregate(
            (tuple(node.args), dict(node.kwargs)),
            lambda leaf: scope.values[leaf] if isinstance(leaf, fx.Node) else leaf,
        )
        if node.op == "output":
            (scope.output,) = args
            return scope.output
        if node.op == "call_module":
            return self._call(scope, str(node.target), args, kwargs)
        if _picks_known_item(node, args):
            items: Any = args[0]
            return items[args[1]]
        if not any(steps_in((args, kwargs))):
            return call(node.target, args, kwargs)
        return self._step(node.target, args, kwargs, scope.path, scope)

    def _call(
        self, scope: Scope, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        module = scope.module.get_submodule(name)
        path = join(scope.path, name)
        if id(module) in self._known.apart:
            step = self.opaque(module, args, kwargs, path, scope, "It is called several times.")
            step.is_apart = True
            return step
        problem = self._known.refused.get(id(module)) or _obstacle(module)
        if problem:
            return self.opaque(module, args, kwargs, path, scope, problem)
        return self.visit(path, module, args, kwargs, scope)

    def visit(
        self,
        path: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        parent: Scope | None,
    ) -> Any:
        """Write down one call of a module, and return what it gives."""
        if _is_from_torch(module) or (has_rule(module) and not any(module.children())):
            return self._step(module, args, kwargs, path, parent)
        before = len(self.steps)
        try:
            return self.enter(path, module, args, kwargs, parent).output
        except Exception as error:  # noqa: BLE001 # the module's own code, which met a symbol
            del self.steps[before:]
            if has_rule(module):
                return self._step(module, args, kwargs, path, parent)
            problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            step = self.opaque(module, args, kwargs, path, parent, problem)
            step.needs_example = isinstance(error, RankError)
            return step

    def opaque(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        path: str,
        scope: Scope | None,
        problem: str,
    ) -> Step:
        """Write down a call of a module that is not looked into."""
        step = self._step(module, args, kwargs, path, scope)
        step.is_opaque, step.problem = True, problem
        step.is_refused = id(module) in self._known.refused
        return step

    def _step(
        self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: str, scope: Any
    ) -> Step:
        step = Step(len(self.steps), target, args, kwargs, path, scope)
        self.steps.append(step)
        return step


def _obstacle(module: nn.Module) -> str:
    """Say why a module is not looked into; empty if it may be."""
    if has_hooks(module):
        return "It has hooks."
    if not isinstance(module, fx.GraphModule) and type(module).__call__ != nn.Module.__call__:
        return "Its class overrides __call__."
    return ""


def _symbol(leaf: Any) -> Any:
    return Activation() if isinstance(leaf, Step) else leaf


def _is_from_torch(module: nn.Module) -> bool:
    """Tell whether a module is torch's own, except for those that only name others or a view."""
    home = type(module).__module__
    is_name = isinstance(module, _ONLY_NAMES)
    return home.startswith("torch.") and not is_name and "forward" not in vars(module)


def _picks_known_item(node: fx.Node, args: tuple[Any, ...]) -> bool:
    """Tell whether a node takes an item out of a structure that a submodule returned."""
    is_getitem = getattr(node.target, "__name__", "") == "getitem"
    return node.op == "call_function" and is_getitem and isinstance(args[0], tuple | list | dict)
