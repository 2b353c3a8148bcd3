"""``deploy.py model=...``: fold any network, without a checkpoint of ``train.py``."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub.constants import ENDPOINT
from rich.console import Console
from torch import Tensor, nn

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.cli.building import build, build_quantization
from repblocks.cli.checking import parameters_of
from repblocks.cli.checking_network import check_network
from repblocks.cli.config import DeployConfig
from repblocks.cli.network_data import network_data
from repblocks.cli.networks import recipe
from repblocks.data import ImageDataModule
from repblocks.deployment.artifact import check_output
from repblocks.deployment.network import fold_network
from repblocks.deployment.pipeline import deploy
from repblocks.deployment.quantization import QuantizationConfig
from repblocks.deployment.quantized_forms import calibration_for
from repblocks.errors import ConfigurationError
from repblocks.expansion import recalibrate_bn
from repblocks.folding.fold import explain

_EXAMPLE_IMAGES = 2
_log = logging.getLogger(__name__)


def network_run(settings: DeployConfig) -> None:
    """Fold the network that the settings name; write its artifact, or only show the plan.

    Args:
        settings: With ``model`` and without a checkpoint.

    Raises:
        RepblocksError: if the network or the output is not possible, or the proof fails.
    """
    check_network(asdict(settings), parameters_of(DeployConfig), {})
    node: dict[str, Any] = dict(settings.model or {})
    if settings.ckpt_path or settings.deploy_shortcut:
        raise ConfigurationError(
            "ckpt_path and deploy_shortcut belong to a run of train.py; leave them out with "
            "model=..., whose weights are model.weights=FILE."
        )
    console = Console(soft_wrap=True, markup=False)
    model = _network(node)
    preprocessing = _preprocessing(model, int(node.get("in_chans") or 3))
    data = network_data(settings.data, preprocessing)
    preprocessing = preprocessing if data is None else data.preprocessing
    example = _example(preprocessing)
    if not _has_weights(node):
        recalibrate_bn(model, [example, torch.randn_like(example)])
    if settings.explain:
        console.print(explain(model, example))
        return
    known = recipe(node)
    output = Path(
        settings.output or Path("outputs") / "deploy" / str(node.get("name", known["name"]))
    )
    check_output(output)
    config = build_quantization(settings.quantization) or QuantizationConfig()
    calibration = calibration_for(data, config, settings.formats, latency=settings.latency)
    folded = fold_network(model, known["name"], known["kwargs"], example)
    report = deploy(
        model,
        folded.model,
        output=output,
        description={
            "model": folded.recipe,
            "preprocessing": preprocessing,
            "class_names": None if data is None else data.class_names,
            "deployment": asdict(settings),
        },
        example_input=example,
        validation=None if data is None else _validation(data),
        calibration=calibration,
        quantization=config,
        formats=settings.formats,
        latency=settings.latency,
        blocks=folded.blocks,
        fold=folded.report,
        onnx=build("onnx_export", settings.onnx_export),
    )
    console.print(report.to_table())
    console.print(f"Artifact: {output}")


def _network(node: dict[str, Any]) -> nn.Module:
    """Build the network in evaluation mode, with downloaded weights if no others are given."""
    if not _has_weights(node) and "pretrained" not in node and _is_reachable(ENDPOINT):
        node["pretrained"] = True
    if not _has_weights(node):
        _log.warning(
            "The weights are random, and BatchNorm statistics are measured on random images, as "
            "%s cannot be reached. Give model.weights=FILE for a local checkpoint.",
            ENDPOINT,
        )
    return build("model", node).eval()


def _has_weights(node: dict[str, Any]) -> bool:
    return bool(node.get("weights") or node.get("pretrained"))


def _is_reachable(url: str) -> bool:
    """Ask once: a download without a network would try for a minute."""
    address = urlsplit(url)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _preprocessing(model: nn.Module, channels: int) -> dict[str, Any]:
    found = timm.data.resolve_model_data_config(model)
    known = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    values = {key: list(v) if isinstance(v := found[key], tuple) else v for key in known}
    if channels == 1:  # timm knows those of colour images
        values |= {key: [sum(values[key]) / len(values[key])] for key in ("mean", "std")}
    size = [channels, *found["input_size"][1:]]
    return {"input_size": size, "in_channels": channels, **values}


def _example(preprocessing: Mapping[str, Any]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_EXAMPLE_IMAGES, *preprocessing["input_size"], generator=generator)


def _validation(data: ImageDataModule) -> Iterable[tuple[Tensor, Tensor]]:
    data.setup("validate")
    return data.val_dataloader()
