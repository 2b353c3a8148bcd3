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


# The wide runs that are under way, the innermost last.
_under_way: list[_Wide] = []

# How many random signs there are before they come again: a prime, so no multiple of a row.
_SIGNS = 65521


@contextmanager
def widened(rounding: float = 0.0) -> Iterator[None]:
    """Compute everything in float64, whatever the dtype of weights, constants and casts.

    Args:
        rounding: Widened tensors (the weights) are moved by this share of themselves, up or down
            at random: what had been lost if they had been rounded.
    """
    mode = _Wide(rounding)
    with _default_dtype(torch.float64), mode:
        _under_way.append(mode)
        try:
            yield
        finally:
            _under_way.pop()


@contextmanager
def paused() -> Iterator[None]:
    """Leave the run of :func:`widened` that is under way: for what its hooks compute."""
    if not _under_way:
        yield
        return
    mode = _under_way[-1]
    mode.is_on = False
    try:
        with _default_dtype(mode.dtype_outside):
            yield
    finally:
        mode.is_on = True


def widen(value: Any) -> Any:
    """Give a narrow floating tensor or dtype as float64, and anything else as it is."""
    if isinstance(value, Tensor) and value.dtype in _NARROW:
        # A device without float64 hands over to the CPU.
        return value.to("cpu" if value.device.type == "mps" else value.device, torch.float64)
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class _Wide(TorchFunctionMode):
    def __init__(self, rounding: float) -> None:
        super().__init__()
        self.is_on = True
        self.dtype_outside = torch.get_default_dtype()
        self._move = _Move(rounding) if rounding else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.is_on:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return widen(func(*args, **kwargs)) if _is_dtype(func) else func(*args, **kwargs)
        if func in _CASTS:
            func, args, kwargs = torch.Tensor.double, args[:1], {}
        # What is written into stays itself.
        kept = args[:1] if name == "__setitem__" or (name[-1:] == "_" and name[:2] != "__") else ()
        return func(*kept, *self._all(args[len(kept) :]), **self._all(kwargs))

    def _all(self, value: Any) -> Any:
        """Widen what stands in a structure: as ``tree_map`` does, which takes far longer."""
        kind = type(value)
        if kind is tuple or kind is list:
            return kind([self._all(one) for one in value])
        if kind is dict:
            return {key: self._all(one) for key, one in value.items()}
        if isinstance(value, tuple | list | dict) and kind is not torch.Size:
            return tree_map(self._widen, value)
        return self._widen(value)

    def _widen(self, value: Any) -> Any:
        wide = widen(value)
        if self._move is None or wide is value or not isinstance(wide, Tensor):
            return wide
        return self._move(wide)


class _Move:
    """Moves tensors by a share of themselves, up or down at random, each in another order."""

    def __init__(self, share: float) -> None:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (_SIGNS,), generator=generator, dtype=torch.float64)
        self._factors = (1 + share * (2 * signs - 1)).repeat(2)  # so that any start has enough
        self._start = 0

    def __call__(self, wide: Tensor) -> Tensor:
        """Move a tensor in its own memory, as its layer may be the largest."""
        factors = self._factors[self._start : self._start + _SIGNS].to(wide.device)
        self._start = (self._start + 7919) % _SIGNS
        wide = wide.contiguous()
        flat = wide.view(-1)
        end = len(flat) // _SIGNS * _SIGNS
        flat[:end].view(-1, _SIGNS).mul_(factors)
        flat[end:].mul_(factors[: len(flat) - end])
        return wide


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _is_dtype(func: Any) -> bool:
    return getattr(func, "__self__", None) is torch.Tensor.dtype
