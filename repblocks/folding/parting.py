"""Name the first module at which a wrong fold parts from its original."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.folding.changes import at_or_below
from repblocks.folding.recording import parts, run_wide, wide, wide_view_of
from repblocks.folding.reference import difference, rms
from repblocks.folding.tolerance import limit

Site = tuple[str, int, str]


def first_difference(
    model: nn.Module,
    folded: nn.Module,
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    blocks: set[str],
) -> str | None:
    """Name where the models part for good, as the folded block or else as the module.

    Inside a folded region modules may differ and meet again (a convolution that has taken in
    the BatchNorm after it), so only what follows the last agreement counts.
    """
    truth = _outputs(model, inputs)
    found = _outputs(folded, inputs)
    rounded = _outputs(folded, inputs, torch.finfo(dtype).eps / 2)
    sites = [s for s in found if s[0] and s in truth and truth[s].shape == found[s].shape]
    agreeing = [
        index
        for index, site in enumerate(sites)
        if _agree(found[site], truth[site], rounded.get(site), dtype)
    ]
    after = sites[agreeing[-1] + 1 if agreeing else 0 :]
    if not after:
        return None
    path = after[0][0]
    holding = sorted((block for block in blocks if at_or_below(path, block)), key=len)
    return holding[0] if holding else path


def _agree(found: Tensor, truth: Tensor, rounded: Tensor | None, dtype: torch.dtype) -> bool:
    is_same_shape = rounded is not None and rounded.shape == found.shape
    rounding = rms(difference(rounded, found)) if rounded is not None and is_same_shape else 0.0
    error = difference(found, truth)
    allowed = limit(dtype, size=rms(truth), signal=rms(truth), rounding=rounding)
    return bool(error.isfinite().all()) and rms(error) <= allowed


def _outputs(
    model: nn.Module, inputs: tuple[Any, ...], rounding: float = 0.0
) -> dict[Site, Tensor]:
    """Run a model in float64 and keep each module's output tensors in order of completion."""
    model, calls, kept = wide_view_of(model), Counter[str](), dict[Site, Tensor]()

    def keeper(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for part, tensor in parts(output).items():
                kept[path, calls[path], part] = wide(tensor)
            calls[path] += 1

        return keep

    for path, module in model.named_modules():
        module.register_forward_hook(keeper(path))
    run_wide(model, inputs, rounding)
    return kept
