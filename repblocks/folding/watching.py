"""See which modules the code of other modules looks into: those must stay as they are.

A module that becomes another layer, the identity or a graph has other attributes, methods and
parameters, and another class. That is no matter to a module that only calls it.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Watch:
    """Who looked into which module.

    Attributes:
        readers: For each module that was looked into, by identity, the modules whose code did it.
    """

    def __init__(self) -> None:
        self.readers: dict[int, set[int]] = {}
        self._running: list[nn.Module | None] = []

    @contextmanager
    def running(self, module: nn.Module | None) -> Iterator[None]:
        """Take what is looked into as done by the code of a module, or by nobody's."""
        self.enter(module)
        try:
            yield
        finally:
            self.leave()

    def enter(self, module: nn.Module | None) -> None:
        """Begin the code of a module."""
        self._running.append(module)

    def leave(self) -> None:
        """End the code that was begun last."""
        self._running.pop()

    @property
    def is_on(self) -> bool:
        """Whether the code of a module runs."""
        return bool(self._running) and self._running[-1] is not None

    def see(self, module: nn.Module) -> None:
        """Note that the running code looks into a module, which may be its own."""
        reader = self._running[-1]
        if module is not reader:
            self.readers.setdefault(id(module), set()).add(id(reader))


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Let a watch see each attribute that is read of a module, and each question for its class."""
    is_instance = isinstance

    def read(module: nn.Module, name: str) -> Any:
        if watch.is_on and not _is_of_a_call(name):
            watch.see(module)
        return object.__getattribute__(module, name)

    def ask(value: Any, classes: Any) -> bool:
        if is_instance(value, nn.Module) and watch.is_on:
            watch.see(value)
        return is_instance(value, classes)

    nn.Module.__getattribute__ = read  # type: ignore[method-assign,assignment]  # for a while
    builtins.isinstance = ask
    try:
        yield
    finally:
        builtins.isinstance = is_instance
        del nn.Module.__getattribute__


def _is_of_a_call(name: str) -> bool:
    """Tell whether torch reads an attribute of a module to call it."""
    return name in ("forward", "_slow_forward") or "hooks" in name or "call_impl" in name
