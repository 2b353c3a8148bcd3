"""What a network does, seen while it runs once: its layers and the operations between them.

Nothing is said about the network beforehand, so that a drawing shows what ran and not what was
meant. Layers are modules without children; a function that torch runs outside of one is a step of
its own. What changes no value (reshaping, dropout in evaluation mode) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from repblocks.blocks import set_execution
from repblocks.deployment.page.naming import describe_function, describe_layer
from repblocks.folding.recording import view_of

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: The input of what is drawn, among the numbers of steps.
OUTSIDE = -1


@dataclass(frozen=True)
class Step:
    """One layer or operation that ran.

    Args:
        path: The module that it is, or in whose forward it stands.
        kind: ``conv``, ``norm``, ``activation``, ``join`` or ``other``: its colour.
        label: What it is, in a word.
        detail: Its sizes; may be empty.
        inputs: Numbers of the steps that it reads; :data:`OUTSIDE` for the input.
        shape: Of its output, without the batch.
        is_layer: Whether it is a module.
    """

    path: str
    kind: str
    label: str
    detail: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    is_layer: bool


def record(model: nn.Module, *inputs: Tensor) -> list[Step]:
    """Run a network once, block by block as it is written, and give its steps in order.

    Args:
        model: In evaluation mode; it stays as it is.
        inputs: Of the network, as ``(N, C, H, W)`` images.
    """
    twin = view_of(model)
    set_execution(twin, "branchwise")
    recorder = _Recorder(inputs)
    for path, module in twin.named_modules():
        module.register_forward_pre_hook(recorder.entering(path, module))
        module.register_forward_hook(recorder.leaving(path, module), with_kwargs=True)
    with torch.no_grad(), recorder:
        twin(*inputs)
    return _joined(recorder.steps)


class _Recorder(TorchFunctionMode):
    """Follows each tensor from the step that made it to those that read it."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._alive = list(inputs)  # or another tensor might get the same identity
        self._makers = {id(one): OUTSIDE for one in self._alive}
        self._paths = [""]
        self._layers = 0

    def entering(self, path: str, module: nn.Module) -> Callable[..., None]:
        """Note that a module starts to run."""

        def enter(_module: nn.Module, _args: Any) -> None:
            self._paths.append(path)
            self._layers += _is_layer(module)

        return enter

    def leaving(self, path: str, module: nn.Module) -> Callable[..., None]:
        """Note that a module has run."""

        def leave(_module: nn.Module, args: Any, named: Any, output: Any) -> None:
            self._paths.pop()
            self._layers -= _is_layer(module)
            if not self._layers and _is_layer(module):
                read = {id(t) for t in _tensors((args, named)) if id(t) in self._makers}
                about = describe_layer(module, len(read))
                self._add(path, about, (args, named), output, is_layer=True)

        return leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and take note of it unless a layer runs it."""
        output = func(*args, **(kwargs or {}))
        if not self._layers:
            read = [id(t) for t in _tensors((args, kwargs)) if id(t) in self._makers]
            about = describe_function(func.__name__, len(set(read)))
            self._add(self._paths[-1], about, (args, kwargs), output, is_layer=False)
        return output

    def _add(
        self,
        path: str,
        about: tuple[str, str, str] | None,
        given: Any,
        output: Any,
        *,
        is_layer: bool,
    ) -> None:
        made = _tensors(output)
        inputs = [self._makers[id(t)] for t in _tensors(given) if id(t) in self._makers]
        if not made or not inputs:
            return
        number = inputs[0]
        if about is not None:
            number = len(self.steps)
            unique = tuple(dict.fromkeys(inputs))
            shape = tuple(made[0].shape[1:])
            self.steps.append(Step(path, *about, unique, shape, is_layer))
        self._alive += made
        self._makers.update((id(tensor), number) for tensor in made)


def _is_layer(module: nn.Module) -> bool:
    """Tell whether a module is drawn as one box; torch's own are, whatever they are made of."""
    if isinstance(module, _CONTAINERS):
        return False
    return type(module).__module__.startswith("torch.nn.") or not any(module.children())


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _joined(steps: list[Step]) -> list[Step]:
    """Make one sum of additions in a row, as the papers draw it."""
    readers = [set[int]() for _ in steps]
    for number, step in enumerate(steps):
        for read in step.inputs:
            if read != OUTSIDE:
                readers[read].add(number)
    gone: dict[int, tuple[int, ...]] = {}
    kept: list[tuple[int, Step]] = []
    for number, old in enumerate(steps):
        step = replace(old, inputs=tuple(_flat(old.inputs, gone)))
        only = next(iter(readers[number])) if len(readers[number]) == 1 else None
        if only is not None and _is_sum(step) and _is_sum(steps[only], step.path):
            gone[number] = step.inputs
        else:
            kept.append((number, step))
    places = {OUTSIDE: OUTSIDE} | {number: place for place, (number, _) in enumerate(kept)}
    return [replace(s, inputs=tuple(places[read] for read in s.inputs)) for _, s in kept]


def _flat(inputs: Iterable[int], gone: dict[int, tuple[int, ...]]) -> Iterable[int]:
    return dict.fromkeys(one for read in inputs for one in gone.get(read, (read,)))


def _is_sum(step: Step, path: str | None = None) -> bool:
    return step.label == "+" and path in (None, step.path)
