"""The program of a model as one flat list of steps, taken from the traces of its modules.

A step is a call of a leaf module, of a function or of a method. Each belongs to a scope, one
non-leaf module called once in one way, whose trace it can be found in again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules import module as all_modules

from repblocks.algebra.rules import has_rule
from repblocks.folding.recording import parts
from repblocks.folding.tracing import Activation, Trace, Tracing
from repblocks.folding.watching import Watch

#: A step's place of a value that an operation changed in place through another view of it.
CHANGED = "changed in place"
INPUT = "input"


@dataclass(eq=False, repr=False)  # they hold one another
class Scope:
    """A non-leaf module with its trace, as it was called once.

    Args:
        path: Its name in the model; empty for the model.
        module: The module.
        trace: What it does.
        args: What it was called with; activations are steps.
        kwargs: The same by name.
        parent: The scope that calls it; None for a root.
        values: What each node of the trace stands for: steps, constants, structures of them.
    """

    path: str
    module: nn.Module
    trace: Trace
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    parent: Scope | None
    values: dict[fx.Node, Any] = field(default_factory=dict)
    output: Any = None

    def node_of(self, step: Step, before: fx.Node | None = None) -> fx.Node | None:
        """Return the first node that stands for a step, if there is one before another node."""
        for node, value in self.values.items():
            if node is before:
                return None
            if value is step and node.op != "output":
                return node
        return None


@dataclass(eq=False, repr=False)  # they hold one another
class Step:
    """One operation.

    Args:
        number: Its place in the program, in the order of the steps.
        target: What is called: a module, a function, the name of a method, or a word for an input.
        args: Its arguments; activations are steps.
        kwargs: The same by name.
        path: The module that is called, or the one whose code calls the function.
        scope: Whose trace it is in; None for an input.
        is_opaque: A module whose code could not be traced, or must not be looked into.
        is_apart: An opaque module with a program of its own, as it is called several times.
        problem: Why it is opaque.
        shape: Of its output in the example; None if that is no tensor or there was no example.
        dtype: Of its output in the example, likewise.
        value: The example's output; tensors only until the flow forgets them.
        seen: The tensors that it read and gave, with the version that they had then, likewise.
        mutates: The memory that it changes in place.
        storage: The memory of all tensors of its output.
        is_aliased: It changes in place what is read afterwards under the old name.
    """

    number: float
    target: nn.Module | Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    path: str
    scope: Scope | None
    is_opaque: bool = False
    is_apart: bool = False
    problem: str = ""
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    value: Any = None
    seen: tuple[tuple[Tensor, int], ...] = ()
    mutates: frozenset[int] = frozenset()
    storage: frozenset[int] = frozenset()
    is_aliased: bool = False

    @property
    def module(self) -> nn.Module | None:
        """The module that is called, if it is one."""
        return self.target if isinstance(self.target, nn.Module) else None

    @property
    def operands(self) -> list[Step]:
        """The steps among the arguments, each once, in order."""
        return list(dict.fromkeys(steps_in((self.args, self.kwargs))))


@dataclass(eq=False, repr=False)  # they hold one another
class Flow:
    """The program of one root: the model, or a module under one that could not be traced.

    Args:
        steps: All steps in the order of the program, inputs first.
        output: What the root returns; activations are steps.
        watch: Which modules the code of others looks into.
    """

    steps: list[Step]
    output: Any
    watch: Watch

    def forget(self) -> None:
        """Let the tensors of the example go; other values (sizes) stay in the steps."""
        for step in self.steps:
            step.seen = ()
            if parts(step.value):
                step.value = None


def enclosing(scope: Scope | None) -> Iterator[Scope]:
    """Yield a scope and those around it, from the inside."""
    while scope is not None:
        yield scope
        scope = scope.parent


def steps_in(structure: Any) -> Iterator[Step]:
    """Find the steps in nested tuples, lists, dicts and slices."""
    found: list[Step] = []
    map_aggregate(structure, lambda leaf: found.append(leaf) if isinstance(leaf, Step) else None)
    return iter(found)


def join(path: str, name: str) -> str:
    """Return the name of a submodule in the model."""
    return f"{path}.{name}" if path and name else path or name


def flatten(
    path: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    problem: str = "",
    apart: Set[int] = frozenset(),
) -> Flow:
    """Write down what ``module(*args, **kwargs)`` does; tensors among the arguments are inputs.

    A module whose code cannot be traced, or for which a problem is given, is one opaque step, whose
    ``problem`` says why; so is each call of the modules that have a program apart, by identity.
    """
    builder = _Builder(apart)
    args, kwargs = map_aggregate((args, dict(kwargs)), builder.as_input)
    if problem:
        output = builder.opaque(module, args, kwargs, path, None, problem)
        return Flow(builder.steps, output, builder.watch)
    output = builder.tracing.during(module, lambda: builder.visit(path, module, args, kwargs, None))
    return Flow(builder.steps, output, builder.watch)


class _Builder:
    def __init__(self, apart: Set[int]) -> None:
        self.steps: list[Step] = []
        self._apart = apart
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
        found = self.tracing.of(module, *symbolic)
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
        if id(module) in self._apart:
            step = self.opaque(module, args, kwargs, path, scope, "It is called several times.")
            step.is_apart = True
            return step
        if has_hooks(module):
            return self.opaque(module, args, kwargs, path, scope, "It has hooks.")
        if not isinstance(module, fx.GraphModule) and type(module).__call__ != nn.Module.__call__:
            return self.opaque(module, args, kwargs, path, scope, "Its class overrides __call__.")
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
            return self.opaque(module, args, kwargs, path, parent, problem)

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
        return step

    def _step(
        self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: str, scope: Any
    ) -> Step:
        step = Step(len(self.steps), target, args, kwargs, path, scope)
        self.steps.append(step)
        return step


def call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a module, a function, or by its name a method of the first argument."""
    if isinstance(target, str):
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether hooks may change what the module, or any module, reads or gives."""
    of_all = (all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks)
    return any((module._forward_hooks, module._forward_pre_hooks, *of_all))


def _symbol(leaf: Any) -> Any:
    return Activation() if isinstance(leaf, Step) else leaf


def _is_from_torch(module: nn.Module) -> bool:
    """Tell whether a module is torch's own, except for those that only name others or a view."""
    home = type(module).__module__
    is_name = isinstance(module, nn.Sequential | nn.Flatten | nn.Unflatten)
    return home.startswith("torch.") and not is_name and "forward" not in vars(module)


def _picks_known_item(node: fx.Node, args: tuple[Any, ...]) -> bool:
    """Tell whether a node takes an item out of a structure that a submodule returned."""
    is_getitem = getattr(node.target, "__name__", "") == "getitem"
    return node.op == "call_function" and is_getitem and isinstance(args[0], tuple | list | dict)
