"""Trace one module's ``forward``: activations are symbols, parameters and buffers stay tensors.

Arithmetic on weights then runs as it is written and arrives as a constant: weight standardisation,
kernels made of kernels, parametrizations and layer scales need no rule. Submodules stay calls, so
that one module that cannot be traced does not spoil its parent.

Source:
    Reed et al., torch.fx, MLSys 2022, https://arxiv.org/abs/2112.08429
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from repblocks.errors import NotFoldable, RepblocksError
from repblocks.folding.state import constant, memory_of, restored
from repblocks.folding.symbols import Symbol, call, functions_of_symbols, has_symbol, is_size
from repblocks.folding.watching import Watch, watched


class Activation:
    """Stands for an activation in the arguments that a module is traced with."""


class RankError(RepblocksError):
    """Code asks how many sizes a shape has, and no example of its activations is given."""


@dataclass(eq=False)
class Trace:
    """What the ``forward`` of one module does, for one way of calling it.

    Args:
        graph: Submodules are calls in it; ``get_attr`` nodes are constants.
        placeholders: One for each activation among the arguments, in order.
        constants: The tensors of the ``get_attr`` nodes, by target.
    """

    graph: fx.Graph
    placeholders: list[fx.Node]
    constants: dict[str, Tensor]


class Tracing(fx.Tracer):
    """Traces modules, one after the other, while it leads what they call and read to symbols.

    Args:
        watch: Sees which modules the code of others looks into.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__(autowrap_modules=())
        self._watch = watch
        self._known: set[int] = set()
        self._at_work: _Tracer | None = None

    def during(self, module: nn.Module, function: Callable[[], Any]) -> Any:
        """Call a function that may call :meth:`of`, and undo what tracing leaves in a module.

        What torch.fx changes in torch for a trace is changed once for all of them.
        """
        results: list[Any] = []
        self._known = memory_of(module)

        def run() -> None:
            results.append(function())

        with functions_of_symbols(), restored(module.modules()), watched(self._watch):
            self.trace(run)
        return results[0]

    def of(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        example: Sequence[Any] | None = None,
    ) -> Trace:
        """Trace ``module(*args, **kwargs)``, in which :class:`Activation` stands for activations.

        Args:
            module: The module.
            args: What it is called with.
            kwargs: The same by name.
            example: Values of the activations, for code that asks how many sizes a shape has.

        Raises:
            NotFoldable: if a call of the module may differ from the next one.
            RankError: if its code asks for that without an example.
            Exception: whatever the module's own code raises when it meets a symbol.
        """
        try:
            return self._trace(_Tracer(module, args, kwargs, self._watch, example))
        except TypeError:  # Some methods of tensors do not take symbols; those of symbols do.
            return self._trace(_Tracer(module, args, kwargs, self._watch, example, symbolic=True))

    def _trace(self, tracer: _Tracer) -> Trace:
        self._at_work = tracer
        try:
            with torch.no_grad(), constant(tracer.root, self._known):
                return tracer.run()
        finally:
            self._at_work = None

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Let the tracer at work write down a call, or do it."""
        if self._at_work is None:
            return forward(*args, **kwargs)
        return self._at_work.call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Let the tracer at work give what is read of a module."""
        if self._at_work is None:
            return attr_val
        return self._at_work.getattr(attr, attr_val, parameter_proxy_cache)


def _modes() -> Any:
    """Return what a ``with`` in code may change for the operations in it."""
    devices = ("cpu", "cuda")
    return torch.is_inference_mode_enabled(), *(
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) for device in devices
    )


class _Tracer(fx.Tracer):
    """Writes down one call of one module."""

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        watch: Watch,
        example: Sequence[Any] | None,
        *,
        symbolic: bool = False,
    ) -> None:
        super().__init__(autowrap_modules=())
        self.root = module
        self.graph = fx.Graph()
        self.tensor_attrs = {}
        self._symbolic = symbolic
        self._example = example
        self._values: dict[fx.Node, Any] = {}
        self._is_evaluating = False
        self._call = (args, dict(kwargs))
        self._watch = watch
        self._modes = _modes()
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        self._own = {id(tensor): name for name, tensor in own}
        self.placeholders: list[fx.Node] = []
        self.constants: dict[str, Tensor] = {}

    def run(self) -> Trace:
        """Run the module on symbols."""
        args, kwargs = map_aggregate(self._call, self._symbol)
        with self._watch.running(self.root):
            # The bound method, so that a forward that was set on the instance is traced.
            output = self.root.forward(*args, **kwargs)
        self.create_node("output", "output", (self.create_arg(output),), {})
        return Trace(self.graph, self.placeholders, self.constants)

    def _symbol(self, argument: Any) -> Any:
        if not isinstance(argument, Activation):
            return argument
        proxy = self.create_proxy("placeholder", f"x{len(self.placeholders)}", (), {})
        self.placeholders.append(proxy.node)
        return proxy

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            raise NotFoldable("Its code changes how torch computes for a part of it.")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Symbol(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del m, module_qualified_name
        return True

    def path_of_module(self, mod: nn.Module) -> str:
        own = (name for name, child in self.root.named_children() if child is mod)
        return next(own, None) or super().path_of_module(mod)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self._is_evaluating:
            return forward(*args, **kwargs)
        if not has_symbol((args, kwargs)):
            self._watch.see(m)
            return forward(*args, **kwargs)
        with self._watch.running(None):
            return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        del attr, parameter_proxy_cache
        with self._watch.running(None):
            is_symbol = self._symbolic and isinstance(attr_val, Tensor) and not self._is_evaluating
            return self.proxy(self.create_arg(attr_val)) if is_symbol else attr_val

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        if not is_size(obj.node):
            return super().iter(obj)
        return iter([operator.getitem(obj, n) for n in range(self.length(obj))])

    def length(self, obj: fx.Proxy) -> int:
        """Return how many sizes a shape has: that is no value, and the same for other sizes."""
        if not is_size(obj.node):
            raise RuntimeError("The length of an activation is not known.")
        if self._example is None:
            raise RankError("Its code asks how many sizes a shape has.")
        self._is_evaluating = True
        try:
            with self._watch.running(None):
                return len(self._value(obj.node))
        finally:
            self._is_evaluating = False

    def _value(self, node: fx.Node) -> Any:
        """Evaluate a node on the example."""
        if node not in self._values:
            args, kwargs = map_aggregate(
                (tuple(node.args), dict(node.kwargs)),
                lambda leaf: self._value(leaf) if isinstance(leaf, fx.Node) else leaf,
            )
            self._values[node] = self._called(node, args, kwargs)
        return self._values[node]

    def _called(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if node.op == "placeholder":
            return (self._example or ())[self.placeholders.index(node)]
        if node.op == "get_attr":
            return self.constants[str(node.target)]
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        return call(node.target, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        name = self._own.get(id(a))
        if name is None:
            name = next((n for n, known in self.constants.items() if known is a), None)
        name = name or f"_constant_{len(self.constants)}"
        self.constants[name] = a
        return self.create_node("get_attr", name, (), {})
