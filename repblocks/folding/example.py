"""Run a flow on its example: shapes, what changes in place, and how opaque modules call theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from repblocks.folding.flow import CHANGED, INPUT, Flow, Step, call, join
from repblocks.folding.recording import parts
from repblocks.folding.state import replayed
from repblocks.folding.watching import Watch, watched


@dataclass(frozen=True, eq=False)
class Call:
    """How an opaque module called one of those below it.

    Args:
        path: Name of the called module in the model.
        module: The called module.
        args: What it was called with.
        kwargs: The same by name.
    """

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def run_example(flow: Flow) -> tuple[list[Call], Any]:
    """Run every step once, without gradients, and write into it what it gave.

    A step that reads what another has changed in place since is made to read that other one: its
    arguments are changed. Tensors are kept, so that no memory is reused, until the flow forgets
    them.

    Returns:
        The calls of modules that have a program apart, and the outermost ones inside opaque
        modules; and the output.
    """
    calls: list[Call] = []
    changed: dict[int, Step] = {}
    ran = [step.module for step in flow.steps if step.module is not None and step.is_opaque]
    with torch.no_grad(), replayed(ran), watched(flow.watch):
        for step in list(flow.steps):
            step.args, step.kwargs = map_aggregate(
                (step.args, dict(step.kwargs)),
                lambda leaf: _current(leaf, changed, flow) if isinstance(leaf, Step) else leaf,
            )
            calls += _run(step, flow.watch)
            changed.update(dict.fromkeys(step.mutates, step))
    flow.output = map_aggregate(
        flow.output, lambda leaf: _current(leaf, changed, flow) if isinstance(leaf, Step) else leaf
    )
    output = map_aggregate(flow.output, lambda leaf: leaf.value if isinstance(leaf, Step) else leaf)
    return calls, output


def _run(step: Step, watch: Watch) -> list[Call]:
    read: list[Tensor] = []
    if step.target != INPUT:
        args, kwargs = map_aggregate(
            (step.args, dict(step.kwargs)),
            lambda leaf: leaf.value if isinstance(leaf, Step) else leaf,
        )
        read = list(parts((args, kwargs)).values())
        versions = [tensor._version for tensor in read]
        recorder = _Recorder(step, watch)
        with recorder:
            step.value = call(step.target, mutable(args), mutable(kwargs))
        step.mutates = frozenset(
            _storage(t) for t, old in zip(read, versions, strict=True) if t._version != old
        )
        found = recorder.calls
        if step.is_apart and step.module is not None:
            found = [Call(step.path, step.module, args, kwargs)]
    else:
        found = []
    if isinstance(step.value, Tensor):
        step.shape, step.dtype = tuple(step.value.shape), step.value.dtype
    given = parts(step.value).values()
    step.storage = frozenset(map(_storage, given))
    step.seen = tuple((tensor, tensor._version) for tensor in (*read, *given))
    return found


def mutable(structure: Any) -> Any:
    """Copy lists and dicts, which a graph keeps immutable, as what is called may change its own."""
    if isinstance(structure, dict):
        return {key: mutable(value) for key, value in structure.items()}
    if isinstance(structure, list):
        return [mutable(value) for value in structure]
    return tuple(map(mutable, structure)) if type(structure) is tuple else structure


def _current(read: Step, changed: Mapping[int, Step], flow: Flow) -> Step:
    """Return the step whose output holds what is read now."""
    changes = [changed[place] for place in read.storage if place in changed]
    last = max(changes, key=lambda step: step.number, default=read)
    if last.number <= read.number:
        return read
    old, new = read.value, last.value
    is_same = isinstance(old, Tensor) and isinstance(new, Tensor)
    if is_same and _geometry(new) == _geometry(old):
        last.is_aliased = True
        return last
    stale = Step(last.number, CHANGED, (last, read), {}, read.path, read.scope, is_opaque=True)
    stale.problem = "It is changed in place."
    stale.value, stale.storage = old, read.storage
    stale.shape, stale.dtype = read.shape, read.dtype
    flow.steps.insert(flow.steps.index(last) + 1, stale)
    return stale


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return (_storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Recorder:
    """Sees the outermost calls inside an opaque module while it runs."""

    def __init__(self, step: Step, watch: Watch) -> None:
        self._who = watch
        self._module = step.module if step.is_opaque and not step.is_apart else None
        self._path = step.path
        self._depth = 0
        self._is_on = False
        self.calls: list[Call] = []
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        if self._module is None or type(self._module).__module__.startswith("torch."):
            return
        for name, module in self._module.named_modules():
            if name:
                self._watch(join(self._path, name), module)
        self._who.enter(self._module)
        self._is_on = True

    def _watch(self, path: str, module: nn.Module) -> None:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._depth == 0:
                self.calls.append(Call(path, module, args, kwargs))
            self._depth += 1
            self._who.enter(module)

        def leave(*_: Any) -> None:
            self._depth -= 1
            self._who.leave()

        self._handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]

    def __exit__(self, *_: object) -> None:
        if self._is_on:
            self._who.leave()
        for handle in self._handles:
            handle.remove()
