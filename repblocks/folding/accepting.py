"""What a fold takes: a module with weights, which stays as it is, and an example that fits it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from repblocks.errors import ConfigurationError, RepblocksError
from repblocks.folding.recording import parts


def check_model(model: Any) -> None:
    """Check that something is a module whose weights have values.

    Raises:
        ConfigurationError: if it is not.
    """
    if not isinstance(model, nn.Module):
        shown = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ConfigurationError(
            f"model must be a torch.nn.Module, got {shown}. Build the network, and load weights "
            "into it with load_state_dict."
        )
    for name, tensor in _held(model):
        if is_lazy(tensor):
            raise ConfigurationError(f"'{name}' has no shape yet: run the model once before.")
        if tensor.is_meta:
            raise ConfigurationError(
                f"'{name}' is on the meta device and has no values: move the model with "
                "model.to_empty(device=...) and load weights into it before."
            )


def check_example(model: nn.Module, example_input: Any) -> None:
    """Check that a model can be called with an example, as far as its signature tells.

    Raises:
        ConfigurationError: if it cannot.
    """
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    tensors = parts(arguments)
    if not tensors:
        raise ConfigurationError(
            "example_input must be a tensor, or a tuple of the model's positional arguments with "
            f"a tensor in it, got {type(example_input).__name__}."
        )
    for tensor in tensors.values():
        if tensor.layout != torch.strided:
            raise ConfigurationError(
                f"example_input must be dense, got a tensor of layout {tensor.layout}: give "
                "x.to_dense()."
            )
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ConfigurationError(
            f"example_input does not fit forward{signature}: {error}. Give a tensor, or a tuple "
            "with one entry for each positional argument; wrap a model that takes others by name."
        ) from error


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Check that a model is the same after as before.

    Raises:
        RepblocksError: if its weights were changed (its copies share memory with it).
    """
    before = _versions(model)
    yield
    after = _versions(model)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if changed:
        raise RepblocksError(
            f"'{changed[0]}' of the input model was changed while it was folded "
            f"({len(changed)} of {len(before)} tensors). Its copies must share no memory with it: "
            "check its __deepcopy__ and what its forward writes to."
        )


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Note which tensors a model holds, and how often each was written to."""
    return {k: (id(t), 0 if t.is_inference() else t._version) for k, t in _held(model)}


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
