"""Compare a trace with a real call: code may have asked whether its input is a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.algebra.kernel import Conv
from repblocks.algebra.rules import has_rule
from repblocks.folding.flow import Flow, Step
from repblocks.folding.recording import parts
from repblocks.folding.state import replayed

#: Of the largest value; the operations are the same, and so should be their rounding.
_TOLERANCE = 1e-3


def is_faithful(
    flow: Flow, traced: Any, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Tell whether a module gives what its trace gave.

    Layers that read what they read in the trace give again what they gave there.
    """
    with torch.no_grad(), replayed([module]):
        _remember(flow.steps)
        real = module.forward(*args, **kwargs)
    found, truth = parts(traced), parts(real)
    return found.keys() == truth.keys() and all(_is_close(found[k], truth[k]) for k in truth)


def _remember(steps: Iterable[Step]) -> None:
    """Set a forward that remembers on each layer, to be undone by who calls."""
    known: dict[nn.Module, list[Step]] = {}
    for step in steps:
        is_layer = isinstance(step.module, Conv | nn.Linear) and has_rule(step.module)
        if is_layer and not step.is_opaque and len(step.seen) == 2:
            known.setdefault(step.target, []).append(step)  # type: ignore[arg-type] # a module
    for layer, calls in known.items():
        layer.forward = _remembering(layer.forward, calls)


def _remembering(real: Callable[[Tensor], Tensor], calls: Sequence[Step]) -> Callable[..., Tensor]:
    def forward(input: Tensor) -> Tensor:  # torch names it so
        for step in calls:
            (read, _), (given, _) = step.seen
            is_kept = all(tensor._version == version for tensor, version in step.seen)
            if is_kept and read.dtype == input.dtype and torch.equal(read, input):
                return given.clone()
        return real(input)

    return forward


def _is_close(found: Tensor, truth: Tensor) -> bool:
    if found.shape != truth.shape or found.dtype != truth.dtype:
        return False
    if not truth.numel() or torch.equal(found, truth):
        return True
    kind = torch.complex128 if truth.is_complex() else torch.float64
    found, truth = found.to(kind), truth.to(kind)
    room = _TOLERANCE * float(truth.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(found, truth, rtol=_TOLERANCE, atol=room, equal_nan=True)
