"""Weights of the official repositories, of timm and of OpenMMLab, in our networks.

Each network says by rules on names what a foreign name is called here. A file may hold the training
form, the deployed form, or some of each, as deployed networks of timm do; the network may be in
either form. What only the network has in its training form is expanded into branches of the same
function, and what only the file has in it is folded.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.errors import CheckpointError, ConfigurationError, RepblocksError
from repblocks.folding.switch import switch_blocks
from repblocks.models._block_names import named_in_blocks
from repblocks.models._orepa_kernels import with_kernels
from repblocks.models._parts import deployed_in
from repblocks.models._published import Published
from repblocks.models._rules import renamed

#: Names under which training code keeps the weights, the averaged ones first.
_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema"),
    *("state_dict", "model_state_dict", "model", "params", "net", "weights"),
)
_COUNTER = "num_batches_tracked"
_HEAD = "head."
_AUXILIARY = "auxiliary."
_SHOWN = 20


def load_official(model: nn.Module, checkpoint: str | Path | Mapping[str, Any]) -> None:
    """Load published weights of a network into ours, in place.

    In evaluation mode the network then computes what the official one does. Every tensor of the
    checkpoint is used, and every one of the network is set. Where deployed weights were expanded,
    call :func:`~repblocks.expansion.recalibrate_bn` before training goes on.

    Args:
        model: A network of this library, in training or deployed form.
        checkpoint: A file of torch, which is read without running code of it, or of safetensors; or
            a state dict. Wrappers such as ``"state_dict"`` and ``"model_ema"`` are taken off, of
            several the averaged weights are taken, and prefixes such as ``"module."`` are dropped.

    Raises:
        CheckpointError: if the checkpoint cannot be read or is none, or weights are left over,
            missing, or of another shape: the message lists them, and the network is not changed.
        ConfigurationError: if the network is none of ours.
        NotFoldable: if a block cannot take a kernel that the file holds.
    """
    if not isinstance(model, Published):
        raise ConfigurationError(
            f"model must be a network of repblocks, got {type(model).__name__}; others have "
            "load_state_dict, and then fold, swap or expand."
        )
    given = _read(Path(checkpoint)) if isinstance(checkpoint, str | Path) else checkpoint
    model.load_state_dict(_checked(official_state(model, given), model))


def official_state(model: Published, given: Any) -> dict[str, Tensor]:
    """Return foreign weights under the names and in the form of a network.

    A classifier of another size is left as it is, for the caller to judge.

    Args:
        model: In training or deployed form; it is not changed.
        given: Weights by foreign names, or by ours.

    Raises:
        CheckpointError: if it is no state dict, or if the forms differ and weights are left over,
            missing, or of another shape; if the forms do not differ, the caller is to find that.
        NotFoldable: if a block cannot take a kernel that the file holds.
    """
    state = _named(_unwrapped(given), model)
    own = model.state_dict()
    state = _shaped(state, own)
    is_deployed = model.is_deployed
    if _names(state) <= _names(own) or not (is_deployed or any(deployed_in(model, state))):
        return state
    form = _training_form(model, state) if is_deployed else copy.deepcopy(model)
    parts = list(deployed_in(form.eval(), state))
    for part in parts:
        part.take_(state, keep=is_deployed)
    current = form.state_dict()
    heads = {k: v for k, v in state.items() if _is_other_head(k, v, current)}
    decided = {key for part in parts for key in part.names(current)}
    decided |= {key for key in current if heads and key.startswith(_HEAD)}
    rest = {key: value for key, value in state.items() if key not in heads}
    kept = {key: current[key] for key in decided - rest.keys()}
    form.load_state_dict(_checked({**kept, **_shaped(rest, current)}, form))
    if is_deployed:
        switch_blocks(form)
    return {**form.state_dict(), **heads}


def _named(state: dict[str, Tensor], model: Published) -> dict[str, Tensor]:
    """Return foreign weights under the names of a network.

    Raises:
        CheckpointError: if one has a shape that nothing can be made of.
    """
    try:
        state = renamed(with_kernels(state), model.official_rules())
        return model.adapted(named_in_blocks(state, model))
    except RepblocksError:
        raise
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"A weight of the checkpoint has a shape that does not fit the others: {error}. Give "
            "the whole file of one network."
        ) from error


def _training_form(model: Published, state: Mapping[str, Tensor]) -> Published:
    """Return a new network for images of as many channels as the weights are made for."""
    form = model.in_training_form()
    for name, own in form.state_dict().items():
        value = state.get(name, own)
        is_of_images = name.startswith("stem.") and value.ndim == own.ndim == 4
        if is_of_images and value.shape[1] != own.shape[1]:
            return model.in_training_form(in_chans=value.shape[1])
    return form


def _read(path: Path) -> Any:
    """Read a file that may hold anything; code in it does not run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of a training run
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any content can fail anywhere
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"Weights cannot be read from {path}: {first_line} Give a file of torch that holds "
            "tensors and plain values, or one of safetensors."
        ) from error


def _unwrapped(given: Any) -> dict[str, Tensor]:
    """Take off wrappers and prefixes."""
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{_ALLOWED}; got {_described(given)}.")
    wrappers = [w for w in _WRAPPERS if _is_wrapper(w, given.get(w))]
    wrapper = next((w for w in wrappers if _is_full(given[w])), next(iter(wrappers), None))
    if wrapper is not None:
        return _unwrapped(given[wrapper])
    wrong = [str(n) for n, v in given.items() if not (isinstance(n, str) and isinstance(v, Tensor))]
    if wrong or not given:
        inside = [str(name) for name, value in given.items() if _has_tensors(value)]
        raise CheckpointError(
            f"{_ALLOWED}; got "
            + (f"{_listed(wrong)}, which are no tensors." if wrong else "nothing.")
            + (f" There are tensors under {_listed(inside)}: give one of these." if inside else "")
        )
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): v for name, v in given.items()}


_ALLOWED = f"The checkpoint must be a state dict, or have one under {', '.join(_WRAPPERS)}"


def _is_wrapper(name: str, value: Any) -> bool:
    """Tell whether weights are to be taken from a value; not from OpenMMLab's averaged ones.

    There the averaged weights are in ``"state_dict"`` for deployment, and the trained ones in their
    place, with a count of the steps.
    """
    return isinstance(value, Mapping) and not (name == "ema_state_dict" and "steps" in value)


def _is_full(value: Any) -> bool:
    """Tell whether there are tensors somewhere inside, not the options of an optimizer alone."""
    if isinstance(value, Mapping):
        return any(_is_full(inner) for inner in value.values())
    return isinstance(value, Tensor)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _described(given: Any) -> str:
    if isinstance(given, Tensor):
        return f"one tensor of the shape {tuple(given.shape)}"
    return "None" if given is None else f"a value of the type {type(given).__name__}"


def _shaped(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with as many axes of size 1 before and after the others as they have here."""

    def view(value: Tensor, like: Tensor | None) -> Tensor:
        is_same = like is not None and _inner(value.shape) == _inner(like.shape)
        return value.reshape(like.shape) if is_same and like is not None else value

    return {name: view(value, own.get(name)) for name, value in state.items()}


def _inner(shape: Sequence[int]) -> tuple[int, ...]:
    """Return sizes from the first to the last that is not 1."""
    kept = [axis for axis, size in enumerate(shape) if size != 1]
    return tuple(shape[kept[0] : kept[-1] + 1]) if kept else ()


def _checked(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a whole state, with the counters that old files lack.

    Raises:
        CheckpointError: if something is left over, missing, or of another shape.
    """
    own = model.state_dict()
    counters = {key: own[key] for key in own.keys() - state.keys() if key.endswith(_COUNTER)}
    whole = {**state, **counters}
    shapes = [
        f"{key} {tuple(whole[key].shape)} instead of {tuple(own[key].shape)}"
        for key in whole
        if key in own and whole[key].shape != own[key].shape
    ]
    faults = {
        "left over": sorted(whole.keys() - own.keys()),
        "missing": sorted(own.keys() - whole.keys()),
        "of another shape": shapes,
    }
    if any(faults.values()):
        said = ". ".join(f"{len(v)} {k}: {_listed(v)}" for k, v in faults.items() if v)
        raise CheckpointError(
            f"The weights are not those of this {type(model).__name__}. {said}. {_advice(faults)}"
        )
    return whole


def _advice(faults: Mapping[str, Sequence[str]]) -> str:
    if all(
        what == "missing" and name.startswith(_AUXILIARY)
        for what, names in faults.items()
        for name in names
    ):
        return (
            "The file has no auxiliary classifiers, which only training needs: build the network "
            "with auxiliary=False."
        )
    return "Build the variant and the number of classes that they were trained for."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _names(state: Mapping[str, Tensor]) -> set[str]:
    return {name for name in state if not name.endswith(_COUNTER)}


def _is_other_head(name: str, value: Tensor, own: Mapping[str, Tensor]) -> bool:
    """Tell whether a weight is of a classifier of another size, or of one that is left out."""
    if not name.startswith(_HEAD):
        return False
    if name in own:
        return value.shape != own[name].shape
    return not any(key.startswith(f"{_HEAD}fc.") for key in own)
