"""What a checkpoint says about its run, and reading one without trusting it."""

from __future__ import annotations

import io
import logging
import pickle
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.expansion import match_branches_

_logger = logging.getLogger(__name__)

FORMAT = 1
_PACKAGES = ("repblocks", "torch", "torchvision", "timm", "pytorch-lightning")
_EMA_PREFIX, _MODEL_PREFIX = "ema.module.", "model."


def _git_commit() -> str | None:
    """Give the commit of the working folder, or None outside of a repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def describe(
    description: Mapping[str, Any],
    *,
    preprocessing: Mapping[str, Any],
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    """Complete what a checkpoint says about its run, and check that it can be read back safely.

    Args:
        description: ``config`` and ``model`` (``name`` and ``kwargs`` of the timm registry).
        preprocessing: The evaluation preprocessing of the data.
        class_names: The names of the classes, in the order of the scores.

    Raises:
        ConfigurationError: if ``model`` is missing or has other classes, or a value is not plain
            Python.
    """
    if not isinstance(description.get("model"), Mapping) or "name" not in description["model"]:
        raise ConfigurationError(
            'description must hold "model": {"name": ..., "kwargs": {...}}, from which deployment '
            f"rebuilds the network, got the keys {sorted(description)}."
        )
    _check_classes(description["model"].get("kwargs", {}), class_names)
    complete = {
        **description,
        "format": FORMAT,
        "preprocessing": dict(preprocessing),
        "class_names": list(class_names),
        "versions": {name: version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
    }
    try:
        buffer = io.BytesIO()
        torch.save(complete, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            "description must hold plain Python only (dict, list, str, int, float, bool, None): "
            + str(error).splitlines()[-1]
        ) from error
    return complete


def _check_classes(kwargs: Mapping[str, Any], class_names: Sequence[str]) -> None:
    """Check that each score of the network has a name."""
    num_scores = kwargs.get("num_classes", len(class_names))
    if num_scores != len(class_names):
        raise ConfigurationError(
            f"There are {len(class_names)} class names for a network of num_classes={num_scores}. "
            "Each score needs one name."
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and looked through.

    Attributes:
        path: Where it is.
        model_name: The network's name in timm's registry.
        model_kwargs: The arguments it was built with.
        state_dict: The evaluation weights: the averaged ones, if there are any.
        class_names: In the order of the scores.
        preprocessing: The evaluation preprocessing of the data.
        config: The configuration of the run.
        raw: Everything in the file.
    """

    path: Path
    model_name: str
    model_kwargs: dict[str, Any]
    state_dict: dict[str, Tensor]
    class_names: tuple[str, ...]
    preprocessing: dict[str, Any]
    config: dict[str, Any]
    raw: dict[str, Any]


def _load(path: Path) -> Any:
    """Read a file that may hold anything; code in it does not run."""
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint at {path}. A run keeps them in its folder checkpoints/."
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # about the format of foreign files
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is damaged. Nothing in it was "
            "executed. Take a checkpoint that train.py wrote."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint. Take another one, for example last.ckpt or "
            f"best.ckpt of the same run. ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]


def evaluation_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick the network's weights out of an ``ImageClassifier``'s: averaged, if there are any."""
    is_averaged = any(name.startswith(_EMA_PREFIX) for name in state_dict)
    prefix = _EMA_PREFIX if is_averaged else _MODEL_PREFIX
    return {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint that training wrote.

    Args:
        path: The file; it may be missing, damaged or hostile.

    Raises:
        CheckpointError: if it is not a whole checkpoint of this library.
    """
    path = Path(path)
    raw = _load(path)
    about = raw.get("repblocks") if isinstance(raw, dict) else None
    if not isinstance(about, dict):
        raise CheckpointError(
            f"{path} was not written by repblocks' training: it has no entry 'repblocks'. "
            "Take best.ckpt or last.ckpt of a run."
        )
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {about.get('format')!r}, and this version reads format {FORMAT}. "
            f"Install the version that wrote it: {about.get('versions')}."
        )
    try:
        _check_classes(about["model"].get("kwargs", {}), about["class_names"])
        return Checkpoint(
            path=path,
            model_name=about["model"]["name"],
            model_kwargs=dict(about["model"].get("kwargs", {})),
            state_dict=evaluation_weights(raw["state_dict"]),
            class_names=tuple(about["class_names"]),
            preprocessing=dict(about["preprocessing"]),
            config=dict(about.get("config", {})),
            raw=raw,
        )
    except ConfigurationError as error:
        raise CheckpointError(f"{path}: {error} Take another checkpoint.") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not complete: {type(error).__name__} {error}. Take another checkpoint."
        ) from error


def listed(title: str, names: list[str]) -> str:
    """Name the first few, and how many there are."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {title} ({shown})" if names else ""


def _head_only(model: nn.Module, state_dict: Mapping[str, Tensor], names: list[str]) -> bool:
    """Tell whether these parameters are one layer's, and differ in its outputs alone."""
    own = model.state_dict()
    layers = {name.rpartition(".")[0] for name in names}
    return len(layers) == 1 and all(
        own[name].shape[1:] == state_dict[name].shape[1:] for name in names
    )


def check_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, new_head: bool = False
) -> list[str]:
    """Compare names and shapes before anything is loaded.

    Args:
        model: The network to load into.
        state_dict: The weights to load.
        new_head: Whether one layer may have another number of outputs.

    Returns:
        The names of the parameters of that layer; empty if everything fits.

    Raises:
        CheckpointError: if something else differs.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    shared = [name for name in own if name in state_dict]
    mismatched = [name for name in shared if own[name].shape != state_dict[name].shape]
    is_head = new_head and bool(mismatched) and _head_only(model, state_dict, mismatched)
    if missing or unexpected or (mismatched and not is_head):
        shapes = [
            f"{name} {tuple(state_dict[name].shape)} for {tuple(own[name].shape)}"
            for name in mismatched
        ]
        parts = [
            listed("missing", missing),
            listed("unexpected", unexpected),
            listed("of another shape", shapes),
        ]
        raise CheckpointError(
            f"The weights do not fit {type(model).__name__}: {'; '.join(filter(None, parts))}. "
            "Use the same network, block and options as the run that wrote them."
        )
    return mismatched


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], *, new_head: bool) -> None:
    """Load weights into a network, in place; its blocks get the branches that were grown.

    Args:
        model: The network.
        state_dict: The weights.
        new_head: Whether the last layer may have another number of classes: it is then kept as
            it is, and a line of the log says so.

    Raises:
        CheckpointError: if they do not fit; the weights are unchanged.
    """
    match_branches_(model, state_dict)
    kept = check_weights(model, state_dict, new_head=new_head)
    if kept:
        rank_zero_only(_logger.info)(f"Another number of classes: {', '.join(kept)} start new.")
    wanted = {name: value for name, value in state_dict.items() if name not in kept}
    model.load_state_dict(wanted, strict=not kept)
