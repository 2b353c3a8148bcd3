"""ONNX in one file with its weights inside, for ONNX Runtime, TensorRT, OpenVINO and others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from repblocks.deployment.formats._pixels import normalisation, on_pixels
from repblocks.deployment.formats._program import export_program, silence
from repblocks.deployment.formats._registry import Export, Format, Run, register_format
from repblocks.deployment.formats._session import callable_of, open_session
from repblocks.errors import ConfigurationError

FILE = "model.onnx"

# Other sizes differ by a multiple of what any network halves its images to.
_HIGHER, _WIDER = 32, 64


def write(export: Export) -> None:
    """Write the network with the input ``input``, the output ``output`` and any batch size."""
    import onnx

    model, example = export.model, export.example
    axes = {0: "batch"}
    if export.onnx.pixels:
        normalise = normalisation(export.folder, example.shape[1])
        model, example = nn.Sequential(normalise, model).eval(), normalise.pixels(example)
    if export.onnx.dynamic_size:
        axes |= {1: "height", 2: "width"} if export.onnx.pixels else {2: "height", 3: "width"}
    path = export.folder / FILE
    with silence():
        with _any_size(export):
            exported = export_program(model, example, tuple(axes))
        program = torch.onnx.export(
            exported,
            (example,),
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=(axes,),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program.")
        program.save(path, external_data=False)
        onnx.checker.check_model(path, full_check=True)


def read(folder: Path, _model: nn.Module) -> Run:
    """Open the file in ONNX Runtime on the CPU; one that takes pixels is given those of images."""
    session = open_session(folder / FILE)
    run, given = callable_of(session), given_to(session, folder)
    return lambda x: run(given(x.cpu()))


def given_to(session: Any, folder: Path) -> Run:
    """Tell what a session is given for normalised images: themselves, or their pixels."""
    taken = session.get_inputs()[0]
    if taken.type != "tensor(uint8)":
        return lambda images: images
    return normalisation(folder, taken.shape[3]).pixels


def inputs(export: Export, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Choose images of another size as well, and such as pixels can be, where that is asked for."""
    if export.onnx.dynamic_size:
        batches = [*batches, _resized(batches[0])]
    if export.onnx.pixels:
        batches = [on_pixels(batch, export.folder) for batch in batches]
    return batches


def _resized(images: Tensor) -> Tensor:
    return interpolate(images, (images.shape[2] + _HIGHER, images.shape[3] + _WIDER))


@contextlib.contextmanager
def _any_size(export: Export) -> Iterator[None]:
    """Explain what fails for a network that fixes the size of its images.

    Raises:
        ConfigurationError: if images of another size are asked for, and the network or its
            export refuses them.
    """
    try:
        if export.onnx.dynamic_size:
            with torch.inference_mode():
                export.model(_resized(export.example[:1]))
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        if not export.onnx.dynamic_size:
            raise
        raise ConfigurationError(
            "onnx_export.dynamic_size=true is not possible: the network takes images of "
            f"{'x'.join(map(str, export.example.shape[1:]))} only. Leave it out."
        ) from error


register_format(Format("onnx", FILE, write, read, inputs=inputs))
