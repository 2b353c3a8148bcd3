"""The program of a model as one flat list of steps, taken from the traces of its modules.

A step is a call of a leaf module, of a function or of a method. Each belongs to a scope, one
non-leaf module called once in one way, whose trace it can be found in again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules import module as all_modules

from repblocks.folding.recording import parts
from repblocks.folding.symbols import call as call
from repblocks.folding.tracing import Trace
from repblocks.folding.watching import Watch

#: A step's place of a value that an operation changed in place through another view of it.
CHANGED = "changed in place"
INPUT = "input"
#: A scale and shift that was moved: no code does it.
MOVED = "moved"


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
        is_refused: An opaque module that must stay as it is.
        problem: Why it is opaque.
        needs_example: It is opaque as its code asks how many sizes a shape has.
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
    is_refused: bool = False
    problem: str = ""
    needs_example: bool = False
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
        path: Name of the root in the model; empty for the model.
        steps: All steps in the order of the program, inputs first.
        output: What the root returns; activations are steps.
        watch: Which modules the code of others looks into.
        called: Modules without any below them that opaque code in it calls, once for each call.
        is_of_one_size: Whether all calls of the root are given the same sizes in the example.
    """

    path: str
    steps: list[Step]
    output: Any
    watch: Watch
    called: list[nn.Module] = field(default_factory=list)
    is_of_one_size: bool = True

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


def is_below(path: str, outer: str) -> bool:
    """Tell whether a module is another one, or inside it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def steps_in(structure: Any) -> Iterator[Step]:
    """Find the steps in nested tuples, lists, dicts and slices."""
    found: list[Step] = []
    map_aggregate(structure, lambda leaf: found.append(leaf) if isinstance(leaf, Step) else None)
    return iter(found)


def join(path: str, name: str) -> str:
    """Return the name of a submodule in the model."""
    return f"{path}.{name}" if path and name else path or name


def has_hooks(module: nn.Module) -> bool:
    """Tell whether hooks may change what the module, or any module, reads or gives."""
    of_all = (all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks)
    return any((module._forward_hooks, module._forward_pre_hooks, *of_all))
