"""Run a copy of a model and show every module's output as it appears."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """One output tensor of one call of one module.

    Args:
        path: Name of the module in its model; empty for the model itself.
        call: How often the module had been called before.
        part: Where in the output the tensor stood; empty if it was the output.
    """

    path: str
    call: int
    part: str


Visitor = Callable[[Site, Tensor], None]


def parts(output: Any, name: str = "") -> dict[str, Tensor]:
    """Find the tensors in a tensor, or in nested tuples, lists and dicts of them."""
    if isinstance(output, Tensor):
        return {name: output}
    if isinstance(output, Mapping):
        items = [(repr(key), value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        items = [(str(index), value) for index, value in enumerate(output)]
    else:
        return {}
    return {k: v for key, value in items for k, v in parts(value, f"{name}[{key}]").items()}


def evaluation_copy(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy a model into evaluation mode and, if given, another dtype; the original is untouched.

    A device without float64 hands over to the CPU.
    """
    twin = copy.deepcopy(model)
    twin.eval()
    if dtype is torch.float64 and any(t.device.type == "mps" for t in twin.parameters()):
        twin.cpu()
    if dtype is not None:
        twin.to(dtype)
    return twin


def run(model: nn.Module, inputs: tuple[Any, ...], visit: Visitor) -> Any:
    """Run a model once without gradients and show each module's output in order of completion.

    The global random state is the same before and after, and the same in every run.

    Args:
        model: A copy in evaluation mode; its hooks are as before afterwards.
        inputs: Positional arguments of the model; floating tensors take its dtype and device.
        visit: Called with each output tensor at the moment it appears: a later in-place
            operation may change the tensor, so what is kept must be copied.

    Returns:
        The model's output.
    """
    calls: Counter[str] = Counter()

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def show(_module: nn.Module, _inputs: Any, output: Any) -> None:
            call = calls[path]
            calls[path] += 1
            for part, tensor in parts(output).items():
                visit(Site(path, call, part), tensor)

        return show

    hooks = [m.register_forward_hook(hook(path)) for path, m in model.named_modules()]
    # Naming the devices keeps torch from warning where there are several.
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no type
    devices = range(torch.cuda.device_count()) if is_used else ()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            return model(*_like(model, inputs))
    finally:
        for handle in hooks:
            handle.remove()


def _like(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Move tensors to the model's device, and floating ones to its dtype."""
    own = next((t for t in model.parameters() if t.is_floating_point()), None)
    if own is None:
        return inputs
    return tuple(
        x.to(own.device, own.dtype if x.is_floating_point() else x.dtype)
        if isinstance(x, Tensor)
        else x
        for x in inputs
    )
