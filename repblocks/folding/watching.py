"""See which modules the code of other modules looks into: those must stay as they are.

A module that becomes another layer, the identity or a graph has other attributes, methods and
parameters, and another class. That is no matter to a module that only calls it, nor to one that
besides reads plain data of it: those are carried over (:mod:`repblocks.folding.carrying`).
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from repblocks.folding.carrying import held_by, is_carried

#: The modules whose code looked into each module, by identity.
Readers = dict[int, set[int]]


class Watch:
    """Who looked into which module.

    Attributes:
        readers: For each module that was looked into for more than plain data, by identity, the
            modules whose code did it.
        read: For each module and plain attribute that was read of it, likewise.
        changing: Such attributes that running code sets, or may change.
    """

    def __init__(self) -> None:
        self.readers: Readers = {}
        self.read: dict[tuple[int, str], set[int]] = {}
        self.changing: set[tuple[int, str]] = set()
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

    def include(self, other: Watch) -> None:
        """Note all that another watch saw."""
        for module, found in other.readers.items():
            self.readers.setdefault(module, set()).update(found)
        for attribute, found in other.read.items():
            self.read.setdefault(attribute, set()).update(found)
        self.changing |= other.changing

    @property
    def is_on(self) -> bool:
        """Whether the code of a module runs."""
        return bool(self._running) and self._running[-1] is not None

    def see(self, module: nn.Module) -> None:
        """Note that the running code looks into a module, which may be its own."""
        reader = self._running[-1]
        if module is not reader:
            self.readers.setdefault(id(module), set()).add(id(reader))

    def see_read(self, module: nn.Module, name: str) -> None:
        """Note that the running code reads an attribute of a module, which may be its own."""
        reader = self._running[-1]
        if module is reader:
            # A list of its own may be one that it appends to.
            if type(held_by(module).get(name)) is list:
                self.changing.add((id(module), name))
        elif is_carried(module, name):
            self.read.setdefault((id(module), name), set()).add(id(reader))
        else:
            self.see(module)


def looked_into(watches: Iterable[Watch]) -> tuple[Readers, dict[int, set[str]]]:
    """Return who looked into each module for more than plain data, and the data that others read.

    Data that code sets while it runs is no plain data: nobody would set it any more.
    """
    watches = list(watches)
    changing = set().union(*(watch.changing for watch in watches))
    readers: Readers = {}
    names: dict[int, set[str]] = {}
    for watch in watches:
        for module, found in watch.readers.items():
            readers.setdefault(module, set()).update(found)
        for (module, name), found in watch.read.items():
            if (module, name) in changing:
                readers.setdefault(module, set()).update(found)
            else:
                names.setdefault(module, set()).add(name)
    return readers, names


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Let a watch see each attribute that is read of a module, and each question for its class."""
    is_instance, assign = isinstance, nn.Module.__setattr__

    def read(module: nn.Module, name: str) -> Any:
        if watch.is_on and not _is_of_a_call(name):
            watch.see_read(module, name)
        return object.__getattribute__(module, name)

    def write(module: nn.Module, name: str, value: Any) -> None:
        if watch.is_on:
            watch.changing.add((id(module), name))
        assign(module, name, value)

    def ask(value: Any, classes: Any) -> bool:
        if is_instance(value, nn.Module) and watch.is_on:
            watch.see(value)
        return is_instance(value, classes)

    nn.Module.__getattribute__ = read  # type: ignore[method-assign,assignment]  # for a while
    nn.Module.__setattr__ = write  # type: ignore[method-assign,assignment]  # likewise
    builtins.isinstance = ask
    try:
        yield
    finally:
        builtins.isinstance = is_instance
        nn.Module.__setattr__ = assign  # type: ignore[method-assign]
        del nn.Module.__getattribute__


def _is_of_a_call(name: str) -> bool:
    """Tell whether torch reads an attribute of a module to call it."""
    return name in ("forward", "_slow_forward") or "hooks" in name or "call_impl" in name
