"""Run a model in float64 without a float64 copy of it: each tensor is widened where it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}


@contextmanager
def widened(rounding: float = 0.0) -> Iterator[None]:
    """Compute everything in float64, whatever the dtype of weights, constants and casts.

    Args:
        rounding: Widened tensors (the weights) are moved by this share of themselves, up or down
            at random: what had been lost if they had been rounded.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide(rounding):
            yield
    finally:
        torch.set_default_dtype(before)


def widen(value: Any) -> Any:
    """Give a narrow floating tensor or dtype as float64, and anything else as it is."""
    if isinstance(value, Tensor) and value.dtype in _NARROW:
        # A device without float64 hands over to the CPU.
        return value.to("cpu" if value.device.type == "mps" else value.device, torch.float64)
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class _Wide(TorchFunctionMode):
    def __init__(self, rounding: float) -> None:
        super().__init__()
        self._rounding = rounding
        self._generator = torch.Generator().manual_seed(0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return widen(func(*args, **kwargs)) if _is_dtype(func) else func(*args, **kwargs)
        if func in _CASTS:
            func, args, kwargs = torch.Tensor.double, args[:1], {}
        # What is written into stays itself.
        kept = args[:1] if name == "__setitem__" or (name[-1:] == "_" and name[:2] != "__") else ()
        rest, kwargs = tree_map(self._widen, (args[len(kept) :], kwargs))
        return func(*kept, *rest, **kwargs)

    def _widen(self, value: Any) -> Any:
        wide = widen(value)
        if not self._rounding or wide is value or not isinstance(wide, Tensor):
            return wide
        signs = torch.randint(0, 2, wide.shape, generator=self._generator, dtype=wide.dtype)
        return wide * (1 + self._rounding * (2 * signs.to(wide.device) - 1))


def _is_dtype(func: Any) -> bool:
    return getattr(func, "__self__", None) is torch.Tensor.dtype
