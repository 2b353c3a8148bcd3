"""Rebuild a deployed network from its artifact folder alone; nothing in the folder is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repblocks.deployment.manifest import check_files, read_json
from repblocks.errors import CheckpointError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1
# Arguments of timm and of its networks that lead to other files, or to a download.
_OF_OTHER_FILES = frozenset(
    ("checkpoint_path", "weights", "pretrained", "pretrained_cfg_overlay", "cache_dir")
)


def load(folder: str | Path) -> nn.Module:
    """Rebuild the deployed network of an artifact, in evaluation mode on the CPU.

    If the artifact has its ``manifest.json``, both files have to be those that were written.

    Args:
        folder: What ``deploy.py`` wrote.

    Raises:
        CheckpointError: if a file is missing or damaged, the network is unknown or of no
            registered name, or the weights do not fit it.
    """
    folder = Path(folder)
    check_files(folder, CONFIG_FILE, WEIGHTS_FILE)
    config = read_config(folder)
    if not config.get("rebuild", False):
        raise CheckpointError(
            f"The network in {folder} has no registered name, so its Python classes cannot be "
            "rebuilt from the folder. Run its model.onnx or model.pt2 instead."
        )
    weights = read_weights(folder)
    arguments = config.get("model_args", {})
    if not isinstance(arguments, dict):
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: model_args must be a table of arguments, got {arguments!r}. "
            "Deploy the checkpoint again."
        )
    arguments = {"pretrained_cfg": config.get("pretrained_cfg"), **arguments}
    model = build(config.get("architecture"), arguments, folder / CONFIG_FILE)
    _fill(model, weights, folder)
    model.eval()
    return model


def is_rebuildable(folder: Path) -> bool:
    """Whether the artifact's network can be built by name."""
    return bool(read_config(folder).get("rebuild", False))


def read_config(folder: Path) -> dict[str, Any]:
    """Read the artifact's ``config.json``.

    Raises:
        CheckpointError: if it is missing, is not JSON, or is of another format version.
    """
    path = folder / CONFIG_FILE
    try:
        config = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {error}. Give the folder that deploy.py wrote, or deploy again."
        ) from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}; this version of repblocks reads "
            f"{FORMAT_VERSION}. Deploy the checkpoint again."
        )
    return dict(config)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the artifact's weights.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {error}. The file is missing or damaged: deploy the checkpoint "
            "again, with the format 'safetensors'."
        ) from error


def build(name: Any, arguments: Any, source: Path) -> nn.Module:
    """Build a registered network, without weights and from nothing but its arguments.

    Args:
        name: Its name in timm's registry, as read from a file.
        arguments: What to build it with, as read from a file.
        source: The file, for the message.

    Raises:
        CheckpointError: if the name is not registered, or the arguments are not its own or name
            another file.
    """
    import timm

    import repblocks.models  # noqa: F401 - registers our networks with timm

    if not isinstance(name, str) or not timm.is_model(name):
        raise CheckpointError(
            f"{source} names the network {name!r}, which is not registered. Import the package "
            "that defines it, or install the version that wrote the file."
        )
    others = sorted(_OF_OTHER_FILES & set(arguments))
    if others:
        raise CheckpointError(
            f"{source} wants other files to be read for its network: "
            f"{', '.join(f'{key}={arguments[key]!r}' for key in others)}. Nothing was read. Do not "
            "use it."
        )
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # of any network's own classes
        raise CheckpointError(
            f"{source} describes no network: {name!r} with the arguments {arguments} fails with: "
            f"{error}. Install the version that wrote the file."
        ) from error


def _fill(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [
        f"{name}: {found.get(name, 'missing')} instead of {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        shown = "; ".join(wrong[:5])
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} does not fit the network of {CONFIG_FILE} in {len(wrong)} "
            f"of {len(expected)} tensors: {shown}. The two files are not of one artifact: deploy "
            "the checkpoint again."
        )
    model.load_state_dict(dict(weights))
