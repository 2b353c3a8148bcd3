"""Run a copy of a model, in its own dtype or in float64, and take the tensors it gives."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from repblocks.errors import RepblocksError
from repblocks.folding.borrowing import memory_of_weights
from repblocks.folding.state import WritesToWeightsError, reading_only
from repblocks.folding.widening import widen, widened

_CONTAINERS = (dict, OrderedDict, list, set)


def parts(output: Any, name: str = "") -> dict[str, Tensor]:
    """Find the tensors in a tensor, or in nested tuples, lists, dicts and dataclasses of them."""
    if isinstance(output, Tensor):
        return {name: output}
    if isinstance(output, Mapping):
        items = [(f"[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        items = [(f"[{index}]", value) for index, value in enumerate(output)]
    elif is_dataclass(output):
        items = [(f".{field.name}", getattr(output, field.name)) for field in fields(output)]
    else:
        return {}
    return {k: v for key, value in items for k, v in parts(value, f"{name}{key}").items()}


def copied(model: nn.Module, known: Mapping[int, Any] | None = None) -> nn.Module:
    """Copy a model, also where it keeps tensors that its own forward has computed.

    Torch refuses to copy those (the weight of old-style weight and spectral normalisation, after a
    run that recorded gradients): their copies have the values only, until they are computed anew.

    Args:
        model: The model.
        known: The copies of some of its values, by the identity of those.

    Raises:
        RepblocksError: if it cannot be copied.
    """
    held = parts([list(vars(module).values()) for module in model.modules()])
    computed = {id(t): t.detach().clone() for t in held.values() if not t.is_leaf}
    try:
        return copy.deepcopy(model, {**computed, **(known or {})})
    except Exception as error:  # whatever the copying of an attribute raises
        raise RepblocksError(
            "The model cannot be copied, and a fold changes a copy only. Where it keeps a lock, a "
            "file, a generator or a tensor that was computed with gradients, detach or delete that "
            f"before. copy.deepcopy says: {type(error).__name__}: {error}"
        ) from error


def evaluation_copy(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy a model into evaluation mode and, if given, another dtype; the original is untouched."""
    twin = copied(model)
    twin.eval()
    return twin if dtype is None else twin.to(dtype)


def view_of(model: nn.Module) -> nn.Module:
    """Copy the modules of a model into evaluation mode, but share its parameters' memory.

    A model that changes its weights when it changes its mode is copied whole.
    """
    compiled = [m for m in model.modules() if isinstance(m, torch.jit.ScriptModule)]
    own = {id(p) for m in compiled for p in m.parameters()}
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.data, requires_grad=p.requires_grad)
        for p in model.parameters()
        if type(p) is nn.Parameter and id(p) not in own and not p.is_inference()
    }
    twin = copied(model, memo | _empty_copies(model))
    try:
        with reading_only(memory_of_weights(model)):
            twin.eval()
    except WritesToWeightsError:  # some layers merge weights when they change their mode
        return evaluation_copy(model)
    return twin


def _empty_copies(model: nn.Module) -> dict[int, Any]:
    """Copy the empty containers of all modules: most of what a deep copy would spend its time on.

    A module has a dozen of them, mostly ordered dicts of hooks.
    """
    held = (value for module in model.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in held if type(value) in _CONTAINERS and not value}


def wide_view_of(model: nn.Module) -> nn.Module:
    """Make a view of a model for :func:`run_wide`.

    Compiled modules do not let their weights be widened one by one: theirs are widened here.
    """
    twin = view_of(model)
    for module in twin.modules():
        if isinstance(module, torch.jit.ScriptModule):
            module.double()
    return twin


def run(model: nn.Module, inputs: tuple[Any, ...], **named: Any) -> Any:
    """Run a model once without gradients, in its own dtype.

    The global random state is the same before and after, and the same in every run.

    Args:
        model: In evaluation mode.
        inputs: Positional arguments of the model; its floating tensors, wherever they stand, take
            the model's dtype and device.
        named: The same by name.

    Returns:
        The model's output.
    """
    own = next((t for t in model.parameters() if t.is_floating_point()), None)

    def like(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if own is None:
            return x.detach().clone()
        dtype = own.dtype if x.is_floating_point() else x.dtype
        return x.detach().to(own.device, dtype, copy=True)

    return _run(model, tree_map(like, (inputs, named)), nullcontext())


def run_wide(
    model: nn.Module, inputs: tuple[Any, ...], rounding: float = 0.0, **named: Any
) -> dict[str, Tensor]:
    """Run a model once in float64, widening each weight where it is used.

    Args:
        model: In evaluation mode (see :func:`wide_view_of`).
        inputs: Positional arguments of the model.
        rounding: Share by which each weight is moved at random.
        named: The same by name.

    Returns:
        The tensors of its output, in float64 on the CPU.
    """
    weights = [t for t in model.parameters() if t.device.type != "mps"]
    device = weights[0].device if weights else None

    def like(x: Any) -> Any:
        return widen(x.detach().to(device, copy=True)) if isinstance(x, Tensor) else x

    return wide_parts(_run(model, tree_map(like, (inputs, named)), widened(rounding)))


def wide(tensor: Tensor) -> Tensor:
    """Copy a tensor into float64 on the CPU; a complex one as its two parts."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.detach().to("cpu", copy=True).to(torch.float64)


def wide_parts(output: Any) -> dict[str, Tensor]:
    """Copy the tensors of an output into float64 on the CPU."""
    return {part: wide(tensor) for part, tensor in parts(output).items()}


def other(inputs: Any, spread: float | None = None) -> Any:
    """Make inputs of the same kind with other values: how much does the output depend on them?

    Args:
        inputs: Tensors in any structure.
        spread: Standard deviation of the values; by default that of the inputs.
    """
    generator = torch.Generator().manual_seed(0)

    def change(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.is_complex():
            return torch.view_as_complex(change(torch.view_as_real(x.resolve_conj())))
        if not x.is_floating_point():  # Another order of the same values: still valid indices.
            order = torch.randperm(x.numel(), generator=generator, device="cpu").to(x.device)
            return x.flatten()[order].view(x.shape)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu")
        own = float(x.double().std()) if x.numel() > 1 else 0.0
        mean = float(x.double().mean()) if x.numel() else 0.0
        return (noise * (spread or own or 1.0) + mean).to(x)

    return tree_map(change, inputs)


def _run(model: nn.Module, arguments: Any, mode: AbstractContextManager[None]) -> Any:
    inputs, named = arguments
    # Naming the devices keeps torch from warning where there are several.
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no type
    devices = range(torch.cuda.device_count()) if is_used else ()
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(0)
        with mode:
            return model(*inputs, **named)
