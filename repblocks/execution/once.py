"""Backward passes that can be differentiated once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from repblocks.errors import RepblocksError
from repblocks.execution.compiled import is_batched


def once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Wrap the backward pass of a Function that saves tensors: its second derivative is refused.

    Every gradient that it returns depends on all that it was computed from, and raises if it is
    differentiated by any of that. Autocast is off in it.

    Args:
        backward: Takes the context, the saved tensors, which may be asked for once only, and the
            gradients.
    """

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if not torch.compiler.is_compiling() and any(map(is_batched, gradients)):
            raise RepblocksError(
                "The merged execution of a block takes one gradient at a time, not a batch; set "
                'execution="branchwise" for is_grads_batched=True and vectorized Jacobians.'
            )
        saved = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(saved[0].device.type, enabled=False):
            found = backward(ctx, saved, *gradients)
        inputs = [t for t in (*saved, *gradients) if t is not None and t.requires_grad]
        if not inputs or not torch.is_grad_enabled():
            return found
        return tuple(own if own is None else _Once.apply(own, *inputs) for own in found)

    return run


class _Once(Function):
    """A gradient that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        del ctx, inputs
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        del ctx, gradients
        raise RepblocksError(
            "The merged execution of a block can be differentiated once, not twice; set "
            'execution="branchwise" for gradients of gradients.'
        )
