"""Who uses each module of a model: how often it is called, and whose code looks into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from torch import nn

from repblocks.errors import NotFoldable
from repblocks.folding.flow import Flow, enclosing, has_hooks
from repblocks.folding.watching import looked_into


class InUse(NotFoldable):
    """A module may not give way, as other code needs it as it is."""


@dataclass(frozen=True, eq=False)
class Users:
    """What must be known of a module before it gives way to another one.

    Args:
        calls: How often each module is called in the whole model, by identity.
        readers: The modules whose code looks into each one for more than plain data, likewise.
        names: The plain attributes of each module that others read, likewise.
        paths: The name of each module in the model, likewise.
    """

    calls: Counter[int]
    readers: Mapping[int, Set[int]]
    names: Mapping[int, Set[str]]
    paths: Mapping[int, str]

    @classmethod
    def of(cls, model: nn.Module, flows: Iterable[Flow]) -> Users:
        """Count the calls of each module, leaf or not, and find whose code looks into it.

        The calls of a module with a program of its own are one; each name that it has besides is
        one more.
        """
        flows = list(flows)
        children = [child for module in model.modules() for child in module._modules.values()]
        calls = Counter(map(id, children))
        calls.subtract(dict.fromkeys(calls, 1))
        for flow in flows:
            scopes = dict.fromkeys(scope for step in flow.steps for scope in enclosing(step.scope))
            calls.update(id(scope.module) for scope in scopes)
            calls.update(map(id, _called(flow)))
        readers, names = looked_into([flow.watch for flow in flows])
        paths = {id(module): path for path, module in model.named_modules()}
        return cls(calls, readers, names, paths)

    def obstacle(self, module: nn.Module) -> NotFoldable | None:
        """Say why a module may not give way to another one; nothing if it may."""
        path = self.paths.get(id(module)) or "The model"
        if has_hooks(module):
            return NotFoldable(f"{path} has hooks.")
        if self.calls[id(module)] != 1:
            return InUse(f"{path} is called several times, or has several names.")
        inside = {id(part): part for part in module.modules()}
        read = next((i for i in inside if self.readers.get(i, set()) - inside.keys()), None)
        return None if read is None else InUse(f"Other code looks into {self.paths[read]}.")


def _called(flow: Flow) -> Iterator[nn.Module]:
    """Yield the modules that are steps of a program or are called in opaque ones, for each call."""
    yield from flow.called
    for module in (step.module for step in flow.steps if not step.is_apart):
        if module is not None and type(module).__module__.startswith("torch."):
            yield from module.modules()  # nobody sees which of them it calls
        elif module is not None:
            yield module
