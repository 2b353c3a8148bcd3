"""What stands for activations in a trace, and the functions that must take it."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate


class Symbol(fx.Proxy):
    """An activation; unlike torch.fx's own it tells ``x += y`` from ``x = x + y``."""

    def __len__(self) -> int:
        return self.tracer.length(self)  # type: ignore[attr-defined] # of _Tracer

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _Read(self, k)


class _Read(fx.proxy.Attribute):
    """An attribute of an activation, as its shape is."""

    __len__ = Symbol.__len__


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return call


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(Symbol, f"__{_name}__", _in_place(getattr(operator, _name)))


def is_size(node: fx.Node) -> bool:
    """Tell whether a node is the shape of a tensor, or a slice of one."""
    if node.target is operator.getitem:
        whole, place = node.args
        return isinstance(place, slice) and isinstance(whole, fx.Node) and is_size(whole)
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    return node.target == "size" and len(node.args) == 1 and not node.kwargs


def call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a module, a function, or by its name a method of the first argument."""
    if isinstance(target, str):
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def has_symbol(structure: Any) -> bool:
    """Tell whether a symbol stands in nested tuples, lists, dicts and slices."""
    found: list[fx.Proxy] = []

    def look(leaf: Any) -> Any:
        if isinstance(leaf, fx.Proxy):
            found.append(leaf)
        return leaf

    map_aggregate(structure, look)
    return bool(found)


@contextmanager
def functions_of_symbols() -> Iterator[None]:
    """Let functions of numbers take symbols.

    Python's own ``max`` and ``min`` compare, and those of ``math`` convert, which a symbol cannot.
    """
    originals: list[tuple[Any, str, Any]] = [(builtins, "max", max), (builtins, "min", min)]
    originals += [(math, name, f) for name, f in vars(math).items() if callable(f)]
    try:
        for home, name, original in originals:
            setattr(home, name, _recorded(original))
        yield
    finally:
        for home, name, original in originals:
            setattr(home, name, original)


def _recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next((a for a in args if isinstance(a, fx.Proxy)), None)
        if proxy is None:
            return original(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", original, args, kwargs)

    return call
