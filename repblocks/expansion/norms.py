"""Put BatchNorm back after deployed convolutions, and measure its statistics again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from repblocks.algebra.kernel import Conv
from repblocks.expansion.batches import fitted, read_inputs
from repblocks.expansion.expand import NUM_BATCHES, expand
from repblocks.expansion.modes import evaluating


def insert_bn(deployed: nn.Module, data: Iterable[Any]) -> nn.Module:
    """Return a copy of a deployed network with a BatchNorm after each convolution.

    Evaluation mode computes what it did: each BatchNorm starts as the identity, but that it takes
    over the bias of its convolution, with the measured deviation as its weight. A convolution
    becomes a ``plain`` block; one that a BatchNorm follows already takes that one over. Left are
    convolutions whose output has a single position, as in squeeze-and-excitation, where the
    statistics of a batch are of few values.

    Args:
        deployed: Any network; it is not changed.
        data: Batches of inputs, or of tuples that start with them; the first 4 are used.

    Returns:
        The copy, with the ``expand_report`` of :func:`~repblocks.expansion.expand.expand`.

    Raises:
        ConfigurationError: if no convolution was replaced, or the data has no batch.
    """
    inputs = list(read_inputs(data, NUM_BATCHES))
    positions = _positions(deployed, inputs[0])
    return expand(deployed, "plain", inputs, lambda path, _: positions.get(path, 0) > 1)


def _positions(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Count the output positions of each convolution that is called."""
    found: dict[str, int] = {}

    def watch(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, y: found.update({path: y.shape[2:].numel()})

    convs = [(path, m) for path, m in model.named_modules() if isinstance(m, Conv)]
    hooks = [conv.register_forward_hook(watch(path)) for path, conv in convs]
    try:
        with torch.no_grad(), evaluating(model):
            model(fitted(model, x))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def recalibrate_bn(model: nn.Module, data: Iterable[Any], num_batches: int | None = None) -> None:
    """Measure the running statistics of every BatchNorm again, in place.

    They become the mean over the batches. The rest of the model runs in evaluation mode meanwhile,
    so that dropout does not disturb them; modes and momenta are the same afterwards.

    Args:
        model: Keeps its weights.
        data: Batches of inputs, or of tuples that start with them.
        num_batches: Batches that are used; None for all.

    Raises:
        ConfigurationError: if there is no batch, or one of another kind.
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    try:
        with torch.no_grad(), evaluating(model, training=norms):
            for number, x in enumerate(read_inputs(data, num_batches)):
                for norm in norms if number == 0 else ():
                    norm.reset_running_stats()
                    norm.momentum = None
                model(fitted(model, x))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
