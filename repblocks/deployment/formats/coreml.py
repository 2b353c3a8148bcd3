"""Core ML, for Apple's systems, which alone can run it: converted and checked part by part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from repblocks.deployment.formats._program import export_program, silence
from repblocks.deployment.formats._registry import Export, Format, register_format
from repblocks.errors import ConfigurationError, VerificationError

FILE = "model.mlpackage"

# These change kernels, so that the written ones could not be compared with the network's.
_FUSIONS = {"common::fuse_conv_batchnorm", "common::fuse_conv_scale"}


def write(export: Export) -> None:
    """Write the network as an ML program in float32, for one image at a time."""
    with silence():
        import coremltools as ct

        passes = ct.PassPipeline.DEFAULT
        passes.remove_passes(_FUSIONS)
        converted = ct.convert(
            _program(export),
            inputs=[ct.TensorType("input", shape=export.example[:1].shape)],
            outputs=[ct.TensorType("output")],
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS15,
            pass_pipeline=passes,
        )
        converted.save(str(export.folder / FILE))


def read(_folder: Path, _model: nn.Module) -> NoReturn:
    """Refuse: nothing here runs the file.

    Raises:
        ConfigurationError: always.
    """
    raise ConfigurationError(
        f"{FILE} is run by Apple's Core ML alone: add it to an app in Xcode. Run another form here."
    )


def check(export: Export) -> None:
    """Check that the file has the network's input, output and kernels.

    Raises:
        VerificationError: naming what is missing.
    """
    with silence():
        import coremltools as ct
        from coremltools.optimize.coreml import get_weights_metadata

        package = ct.models.MLModel(str(export.folder / FILE), skip_model_load=True)
        written = [one.val for one in get_weights_metadata(package, weight_threshold=0).values()]
        kernels = _kernels(_program(export))
    description = package.get_spec().description
    ends = {one.name: _shape(one) for one in (*description.input, *description.output)}
    lost = [name for name, kernel in kernels.items() if not _is_among(kernel, written)]
    if list(ends) != ["input", "output"] or ends["input"] != (1, *export.example.shape[1:]) or lost:
        raise VerificationError(
            f"{FILE} does not hold the network: it has the ends {ends} and lacks {len(lost)} of "
            f"{len(kernels)} kernels: {', '.join(lost[:5])}.",
            difference=math.inf,
            tolerance=0.0,
        )


def _program(export: Export) -> ExportedProgram:
    program = export_program(export.model, export.example[:1], free=())
    return program.run_decompositions({})


def _kernels(program: ExportedProgram) -> dict[str, Any]:
    """Give the weights of the convolutions and linear maps in a graph."""
    names = program.graph_signature.inputs_to_parameters
    weighted = [
        node.args[1].name
        for node in program.graph.nodes
        if node.op == "call_function" and any(op in str(node.target) for op in ("conv", "linear"))
    ]
    used = {names[name] for name in weighted if name in names}
    return {name: program.state_dict[name].detach().numpy() for name in sorted(used)}


def _shape(end: Any) -> tuple[int, ...]:
    return tuple(end.type.multiArrayType.shape)


def _is_among(kernel: Any, written: list[Any]) -> bool:
    return any(
        kernel.size == one.size and np.array_equal(kernel.ravel(), one.ravel()) for one in written
    )


register_format(Format("coreml", FILE, write, read, extra="coreml", check=check))
