"""Run a model in evaluation mode for a moment, without calling its own ``eval``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module, training: Collection[nn.Module] = ()) -> Iterator[None]:
    """Set the mode of each module, and give each its own mode back afterwards.

    The flags are set one by one, as some models fold themselves when ``eval`` is called.

    Args:
        model: Is put in evaluation mode, with all its submodules.
        training: Submodules that are put in training mode instead.
    """
    before = [(module, module.training) for module in model.modules()]
    chosen = set(training)
    try:
        for module, _ in before:
            module.training = module in chosen
        yield
    finally:
        for module, mode in before:
            module.training = mode
