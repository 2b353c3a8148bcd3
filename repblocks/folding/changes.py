"""Where two models with mostly the same names are not the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, tuple)


def changes(model: nn.Module, folded: nn.Module, path: str = "") -> list[str]:
    """Name the outermost modules that differ in class, children, weights or plain attributes."""
    children, others = dict(model.named_children()), dict(folded.named_children())
    if (
        type(model) is not type(folded)
        or children.keys() != others.keys()
        or _differ(model, folded)
    ):
        return [path]
    return [
        place
        for name, child in children.items()
        for place in changes(child, others[name], f"{path}.{name}" if path else name)
    ]


def self_folded(model: nn.Module, folded: nn.Module) -> set[str]:
    """Find the modules that kept path and class but not their children: folded blocks."""
    after = dict(folded.named_modules())
    common = [(path, m, after[path]) for path, m in model.named_modules() if path in after]
    return {
        path
        for path, old, new in common
        if path and type(old) is type(new) and not isinstance(old, nn.Sequential)
        if {name for name, _ in old.named_children()} != {name for name, _ in new.named_children()}
    }


def at_or_below(place: str, path: str) -> bool:
    """Tell whether a module is another one, or stands in it."""
    return place == path or place.startswith(f"{path}." if path else "")


def _differ(old: nn.Module, new: nn.Module) -> bool:
    own, others = _weights(old), _weights(new)
    if own.keys() != others.keys() or any(not _same(own[k], others[k]) for k in own):
        return True
    # What only one of them has may be kept from a run.
    return any(not _same(v, vars(new).get(k, v)) for k, v in vars(old).items() if _is_plain(k, v))


def _weights(module: nn.Module) -> dict[str, Any]:
    return {**module._parameters, **module._buffers}


def _is_plain(name: str, value: Any) -> bool:
    return name != "training" and isinstance(value, _PLAIN)


def _same(old: Any, new: Any) -> bool:
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return bool(type(old) is type(new) and old == new)
    same_form = old.shape == new.shape and old.dtype == new.dtype
    return same_form and torch.equal(old, new.to(old.device))
