"""Kernels in Triton, for what is on a GPU.

Nothing here imports Triton before such an input comes; where it is missing, or cannot build its
kernels, torch does the work.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_log = logging.getLogger(__name__)

#: Devices that the kernels run on; torch calls those of AMD so, too.
DEVICES = ("cuda",)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def suit(x: Tensor) -> bool:
    """Tell whether the kernels take a tensor, if they can be built.

    Triton launches on the device that is current, whatever its tensors are on.
    """
    if x.device.type not in DEVICES or x.dtype not in _DTYPES or 0 in x.shape:
        return False
    if torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter):
        return False
    if is_in_torch_dispatch_mode():  # which would not see what the kernels do
        return False
    return x.device.type != "cuda" or x.device.index == torch.cuda.current_device()


def power(number: int) -> int:
    """Return the least power of two that is not less, as kernels want their blocks."""
    return 1 << (number - 1).bit_length()


@cache
def loaded(name: str) -> ModuleType | None:
    """Return a module of kernels, or None where Triton cannot build them.

    Args:
        name: Of a module beside this one.
    """
    try:
        from triton import knobs, runtime  # type: ignore[import-untyped] # it ships no types

        module = import_module(f"repblocks.execution.{name}")
        if not knobs.runtime.interpret:
            runtime.driver.active.get_current_target()  # builds what launches kernels
    except (ImportError, RuntimeError) as error:
        say_once(str(error))
        return None
    return module


@cache
def say_once(reason: str) -> None:
    """Log why there are no kernels."""
    _log.info("Training is slower without the kernels for a GPU: %s.", reason)
