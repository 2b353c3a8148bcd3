"""OpenVINO's IR: the graph as XML and the weights beside it, for CPUs, GPUs and NPUs of Intel."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from repblocks.deployment.formats import onnx
from repblocks.deployment.formats._program import silence
from repblocks.deployment.formats._registry import (
    Export,
    Format,
    Run,
    register_format,
)
from repblocks.deployment.onnx_options import OnnxOptions

FILE, WEIGHTS = "model.xml", "model.bin"


def write(export: Export) -> None:
    """Write the network in float32, with the names and the free batch size of its ONNX form."""
    import openvino

    with silence(), tempfile.TemporaryDirectory() as folder:
        onnx.write(replace(export, folder=Path(folder), onnx=OnnxOptions()))
        graph = openvino.Core().read_model(Path(folder) / onnx.FILE)
        openvino.save_model(graph, export.folder / FILE, compress_to_fp16=False)


def read(folder: Path, _model: nn.Module) -> Run:
    """Compile the graph for the CPU, in float32 also where the CPU would rather take bfloat16."""
    import openvino

    compiled = openvino.Core().compile_model(
        folder / FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled(x.cpu().numpy())["output"].copy())

    return run


register_format(Format("openvino", FILE, write, read, extra="openvino", more_files=(WEIGHTS,)))
