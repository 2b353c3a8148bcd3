"""Plain data of a module that other code reads, on what takes the place of the module."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from torch import fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

_PLAIN = (bool, int, float, complex, str, type(None))


def _own_names() -> set[str]:
    """Return the names that what takes the place of a module uses itself."""
    layers = [
        *(kind(1, 1, 1) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
        nn.Linear(1, 1),
        nn.Identity(),
        nn.Sequential(),
        fx.GraphModule({}, fx.Graph()),
    ]
    # A method of every module may be hidden behind data on the new one as it was on the old one.
    # All are in evaluation mode.
    return {name for layer in layers for name in dir(layer)} - {*dir(nn.Module), "training"}


_TAKEN = _own_names()


def is_carried(module: nn.Module, name: str) -> bool:
    """Tell whether an attribute of a module may be read of what takes the place of the module.

    It is plain data in the module's own dict, under a name that no layer uses.
    """
    held = held_by(module)
    return name in held and name not in _TAKEN and _is_plain(held[name])


def held_by(module: nn.Module) -> dict[str, Any]:
    """Return the dict of a module; whoever watches what is read of it does not see this."""
    held: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return held


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def carried(model: nn.Module, read: Set[int]) -> dict[str, dict[str, Any]]:
    """Return the plain attributes of the modules that others read some of, by the path.

    Args:
        model: The model, before anything is put in the place of something.
        read: Those modules, by identity.
    """
    return {
        path: {name: value for name, value in held_by(module).items() if is_carried(module, name)}
        for path, module in model.named_modules(remove_duplicate=False)
        if id(module) in read
    }


def carry(attributes: Mapping[str, Mapping[str, Any]], folded: nn.Module) -> None:
    """Set attributes on the modules that now stand at their paths."""
    after = dict(folded.named_modules(remove_duplicate=False))
    for path in attributes.keys() & after.keys():
        for name in attributes[path].keys() - held_by(after[path]).keys():
            attach(after[path], name, attributes[path][name])


def attach(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute that copies of a module have too: a graph copies only those it is told."""
    held_by(module)[name] = value
    if isinstance(module, fx.GraphModule):
        module.meta.setdefault(_USER_PRESERVED_ATTRIBUTES_KEY, {})[name] = value
