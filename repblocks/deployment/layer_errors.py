"""How far each layer of the deployed network is from a float64 run of the training form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.blocks import RepBlock
from repblocks.folding.recording import run, run_wide, view_of, wide, wide_view_of
from repblocks.folding.reference import difference, rms

#: A layer that has taken in the one after it gives another value on purpose, and that is never
#: this near to the old one.
_ANOTHER_VALUE = 0.01

Site = tuple[str, int]


@dataclass(frozen=True)
class LayerError:
    """RMS differences from a float64 run of the training form, relative to the RMS of its value.

    Args:
        path: The module whose output was compared.
        kind: Its class in the training form.
        rms_rel: Of the deployed form, run in its own dtype.
        own_rms_rel: Of the training form, run in its own dtype.
    """

    path: str
    kind: str
    rms_rel: float
    own_rms_rel: float


def compare_layers(
    training_form: nn.Module, folded: nn.Module, images: Tensor
) -> tuple[LayerError, ...]:
    """Compare what each module gives in both forms, in the order in which they run.

    Of modules that give the same value (a block and its last layer) one is named. Those that give
    another value than before, as parts of what became one layer, are left out, and so are those
    that give nothing but zeros.

    Args:
        training_form: In evaluation mode.
        folded: In evaluation mode.
        images: ``(N, C, H, W)``.
    """
    found = _outputs(view_of(folded), lambda model: run(model, (images,)))
    own = _outputs(view_of(training_form), lambda model: run(model, (images,)))
    truth = _outputs(wide_view_of(training_form), lambda model: run_wide(model, (images,)))
    modules = dict(training_form.named_modules())
    compared = []
    for sites in _same_value(found):
        errors = {
            site: _error(found[site], truth[site])
            for site in sorted(sites, key=lambda s: not isinstance(modules.get(s[0]), RepBlock))
            if site in truth and truth[site].shape == found[site].shape and truth[site].any()
        }
        alike = [site for site, error in errors.items() if error < _ANOTHER_VALUE]
        if alike:
            site = alike[0]
            kind = type(modules[site[0]]).__name__
            error = LayerError(site[0], kind, errors[site], _error(own[site], truth[site]))
            compared.append(error)
    return tuple(compared)


def _outputs(model: nn.Module, execute: Callable[[nn.Module], object]) -> dict[Site, Tensor]:
    """Run a model and keep the output of each module that gives one tensor."""
    kept: dict[Site, Tensor] = {}
    calls = Counter[str]()

    def keeper(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                kept[path, calls[path]] = output.detach().clone()  # it may be overwritten
            calls[path] += 1

        return keep

    for path, module in model.named_modules():
        if path:
            module.register_forward_hook(keeper(path))
    execute(model)
    return kept


def _same_value(outputs: Mapping[Site, Tensor]) -> list[list[Site]]:
    """Group modules that give, one after the other, the same value."""
    groups: list[list[Site]] = []
    for site, value in outputs.items():
        if groups and torch.equal(outputs[groups[-1][0]], value):
            groups[-1].append(site)
        else:
            groups.append([site])
    return groups


def _error(value: Tensor, truth: Tensor) -> float:
    return rms(difference(wide(value), truth)) / rms(truth)
