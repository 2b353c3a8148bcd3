"""Undo what running a module leaves in it, and keep it from changing what is remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repblocks.errors import NotFoldable, RepblocksError

_Table = dict[str, Any]


@contextmanager
def restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give modules back the attributes, parameters, buffers and children that they had.

    So are the lists, dicts and sets among the attributes given back what they held: caches.
    """
    before: list[tuple[Any, Any]] = []
    for table in (table for module in modules for table in _tables(module)):
        before.append((table, dict(table)))
        held = [v for v in table.values() if type(v) in (list, dict, set, OrderedDict)]
        before += [(container, container.copy()) for container in held]
    try:
        yield
    finally:
        for container, content in before:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)


@contextmanager
def replayed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run on random numbers that are always the same, and undo what is written into buffers."""
    known = dict.fromkeys(modules)
    buffers = {b: (b.clone(), b._version) for module in known for b in module.buffers()}
    # Naming the devices keeps torch from warning where there are several.
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no type
    devices = range(torch.cuda.device_count()) if is_used else ()
    try:
        with torch.random.fork_rng(devices), restored(m for one in known for m in one.modules()):
            torch.manual_seed(0)
            yield
    finally:
        for buffer, (value, version) in buffers.items():
            if buffer._version != version:
                buffer.data.copy_(value)


def memory_of(module: nn.Module) -> set[int]:
    """Return the memory of all tensors that a module holds."""
    return {tensor.untyped_storage()._cdata for tensor in tensors_of(module)}


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return the parameters, buffers and plain tensors of a module and of those below it."""
    plain = [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    return list(dict.fromkeys([*module.parameters(), *module.buffers(), *plain]))


@contextmanager
def constant(module: nn.Module, known: Set[int]) -> Iterator[None]:
    """Let the code of a module run, if it gives the same each time.

    Args:
        module: The module.
        known: The memory that was there before.

    Raises:
        NotFoldable: if it draws random numbers, or changes a tensor or a number of the module.
    """
    before = [dict(table) for table in _tables(module)]
    with _Constant(known):
        yield
    for old, new in zip(before, _tables(module), strict=True):
        for name, value in new.items():
            if _differs(value, old.get(name)):
                raise NotFoldable(f"Its code sets {name}, so that calls may differ.")


def _tables(module: nn.Module) -> list[_Table]:
    """Return where a module keeps what it holds; compiled ones have no dicts."""
    tables = (vars(module), module._parameters, module._buffers, module._modules)
    return [table for table in tables if isinstance(table, dict)]


def _differs(new: Any, old: Any) -> bool:
    if isinstance(new, Tensor):
        return new is not old
    return isinstance(new, int | float | complex | str) and (type(old), old) != (type(new), new)


class WritesToWeightsError(RepblocksError):
    """The code of a module changes memory that is not its own."""


@contextmanager
def reading_only(known: Set[int]) -> Iterator[None]:
    """Let code run that must not change some memory.

    Raises:
        WritesToWeightsError: before it does.
    """
    if not known:
        yield
        return
    with _Written(known):
        yield


class _Written(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no type
    """Refuses operations that change what was there before."""

    def __init__(self, known: Set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no type
        self._known = known

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        self.check(func)
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for argument in func._schema.arguments:
            value = given.get(argument.name)
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            if is_written and isinstance(value, Tensor) and self._is_known(value):
                self.refuse()
        return func(*args, **kwargs)

    def check(self, function: Any) -> None:
        """Check an operation by itself."""

    def refuse(self) -> None:
        """Refuse an operation that changes what was there before."""
        raise WritesToWeightsError("Its code changes the weights of the model.")

    def _is_known(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._known


class _Constant(_Written):  # type: ignore[no-untyped-call]  # torch has no type
    """Refuses operations that are random or change what was there before."""

    def check(self, function: Any) -> None:
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise NotFoldable("Its code draws random numbers.")

    def refuse(self) -> None:
        raise NotFoldable("Its code changes a tensor of its own, so that calls differ.")
