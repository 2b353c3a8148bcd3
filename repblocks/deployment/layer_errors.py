"""How far each layer of the deployed network is from a float64 run of the training form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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
    training_form: nn.Module, folded: nn.Module, *inputs: Tensor
) -> tuple[LayerError, ...]:
    """Compare what each module gives in both forms, in the order in which they run.

    Of modules that give the same value (a block and its last layer) one is named. A layer that
    gives another value than before, as it took in what follows it, is compared with the module
    whose value it gives now, and named after that; it is left out if there is none, and so is one
    that gives nothing but zeros.

    Args:
        training_form: In evaluation mode.
        folded: In evaluation mode.
        inputs: Of both, as ``(N, C, H, W)`` images.
    """
    found = _outputs(view_of(folded), lambda model: run(model, inputs))
    own = _outputs(view_of(training_form), lambda model: run(model, inputs))
    truth = _outputs(wide_view_of(training_form), lambda model: run_wide(model, inputs))
    modules = dict(training_form.named_modules())
    places = {site: place for place, site in enumerate(truth)}
    groups, order, compared = _same_value(found), list(truth), []
    start = 0
    for number, sites in enumerate(groups):
        value = found[sites[0]]
        named = [site for site in sites if site in truth]
        named.sort(key=lambda s: not isinstance(modules[s[0]], RepBlock))
        later = (places[site] for group in groups[number + 1 :] for site in group if site in places)
        around = order[start : next(later, len(order))]
        site = _alike(value, truth, named)
        if site is None and not _is_in_block(sites[0][0], modules):
            site = _alike(value, truth, around, best=True)
        if site is not None:
            kind = type(modules[site[0]]).__name__
            errors = (_error(values, truth[site]) for values in (value, own[site]))
            compared.append(LayerError(site[0], kind, *errors))
            start = places[site] + 1
    return tuple(compared)


def _is_in_block(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a module is a part of a block, which is compared as a whole."""
    parts = path.split(".")
    above = (modules.get(".".join(parts[:depth])) for depth in range(1, len(parts)))
    return any(isinstance(module, RepBlock) for module in above)


def _alike(
    value: Tensor, truth: Mapping[Site, Tensor], sites: Iterable[Site], *, best: bool = False
) -> Site | None:
    """Give the first site at which there is this value, or that with the smallest error."""
    errors = (
        (_error(value, truth[site]), site)
        for site in sites
        if truth[site].shape == value.shape and truth[site].any()
    )
    alike = ((error, site) for error, site in errors if error < _ANOTHER_VALUE)
    found = min(alike, default=None) if best else next(alike, None)
    return found[1] if found else None


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
