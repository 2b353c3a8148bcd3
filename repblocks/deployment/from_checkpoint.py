"""Deploy a checkpoint: rebuild its network from the file alone, fold it, prove it, write it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repblocks.data import ImageDataModule
from repblocks.deployment.artifact import check_output
from repblocks.deployment.load import build
from repblocks.deployment.network import fold_network
from repblocks.deployment.onnx_options import OnnxOptions
from repblocks.deployment.pipeline import deploy
from repblocks.deployment.preparing import image_size
from repblocks.deployment.quantization import QuantizationConfig
from repblocks.deployment.quantized_forms import calibration_for
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import ConfigurationError, DataError
from repblocks.training.checkpoint import Checkpoint, load_weights, read_checkpoint
from repblocks.training.same_images import check_same_images

_EXAMPLE_IMAGES = 8


def deploy_checkpoint(
    path: str | Path,
    output: str | Path,
    *,
    data: ImageDataModule | None = None,
    formats: Sequence[str] = ("safetensors", "onnx", "pt2"),
    model_options: Mapping[str, Any] | None = None,
    onnx: OnnxOptions | None = None,
    quantization: QuantizationConfig | None = None,
    latency: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> DeploymentReport:
    """Deploy the evaluation weights of a checkpoint.

    Args:
        path: A checkpoint that training wrote; nothing else is needed.
        output: The artifact's folder; it appears whole or not at all.
        data: Where the validation images come from. Without it, or without its files, the report
            says so.
        formats: Names of the formats to write.
        model_options: Arguments of the network that change the deployed form, over the
            checkpoint's.
        onnx: What ``model.onnx`` is to take; by default normalised images of the network's size.
        quantization: How formats that quantize do it; they need ``data``.
        latency: Time each form in each runtime.
        settings: Plain values that the manifest says of the deployment besides these.

    Raises:
        CheckpointError: if the file is no checkpoint, or does not fit the network it names.
        VerificationError: if the folded network or a written form is another function.
        ConfigurationError: if the network takes no such option, the data has other classes or is
            prepared in another way than in training, has no images for a format that needs them,
            or ``output`` cannot be written.
    """
    check_output(Path(output), Path(path))
    checkpoint = read_checkpoint(path)
    _check_options(checkpoint.model_name, model_options or {})
    arguments = {**checkpoint.model_kwargs, **(model_options or {})}
    training_form = build(checkpoint.model_name, arguments, Path(path))
    load_weights(training_form, checkpoint.state_dict, new_head=False)
    training_form.eval()
    validation, note = _validation_batches(data, checkpoint)
    config = quantization or QuantizationConfig()
    calibration = calibration_for(data, config, formats, latency=latency)
    example = _example(checkpoint)
    folded = fold_network(training_form, checkpoint.model_name, arguments, example)
    return deploy(
        training_form,
        folded.model,
        output=output,
        description={
            "model": folded.recipe,
            "preprocessing": checkpoint.preprocessing,
            "class_names": checkpoint.class_names,
            "run": _run_of(checkpoint),
            "deployment": settings,
        },
        example_input=example,
        validation=validation,
        formats=formats,
        blocks=folded.blocks,
        note=note,
        fold=folded.report,
        onnx=onnx,
        calibration=calibration,
        quantization=config,
        latency=latency,
    )


def _run_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Give what the manifest says about the training."""
    about = checkpoint.raw["repblocks"]
    own = {key: about.get(key) for key in ("versions", "git_commit")}
    return {"config": checkpoint.config, **own}


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check that a network takes these arguments, where its signature says which it takes."""
    import timm

    import repblocks.models  # noqa: F401 - registers our networks with timm

    if not timm.is_model(name):
        return  # building it says what is wrong
    known = inspect.signature(timm.model_entrypoint(name)).parameters
    wrong = sorted(options.keys() - known.keys())
    if wrong and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        takes = sorted(known.keys() - {"pretrained"})
        raise ConfigurationError(
            f"The network {name} of the checkpoint has no argument {', '.join(wrong)}. Leave it "
            f"out, or change one that it takes: {', '.join(takes)}."
        )


def _validation_batches(data: ImageDataModule | None, checkpoint: Checkpoint) -> tuple[Any, str]:
    """Give the validation batches, or None and why there are none."""
    if data is None:
        return None, "no validation data was given"
    try:
        data.setup("validate")
    except DataError as error:
        return None, f"no validation data was found: {error}"
    check_same_images(checkpoint, data)
    return data.val_dataloader(), "the validation set holds no images"


def _example(checkpoint: Checkpoint) -> Tensor:
    """Make seeded noise of the size and spread of normalised images: reports are repeatable."""
    size = image_size({"preprocessing": checkpoint.preprocessing}, checkpoint.path)
    generator = torch.Generator().manual_seed(0)
    return torch.randn((_EXAMPLE_IMAGES, *size), generator=generator)
