"""OpenVINO's intermediate representation with 8-bit weights and activations, quantized by NNCF."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from repblocks.deployment.formats import onnx as float_onnx
from repblocks.deployment.formats._program import silence
from repblocks.deployment.formats._registry import Export, Format, Run, register_format
from repblocks.deployment.quantization.preparation import prepared

FILE, WEIGHTS = "model_int8.xml", "model_int8.bin"


def write(export: Export) -> None:
    """Write the network; its weights are beside it."""
    with silence():
        import nncf
        import openvino
    config = export.quantization
    # NNCF corrects the biases itself, for its own rounding.
    model = prepared(export.model, export.calibration, replace(config, correct_bias=False))
    overflow = nncf.OverflowFix.ENABLE if config.half_range else nncf.OverflowFix.DISABLE
    with tempfile.TemporaryDirectory() as name, silence():
        float_onnx.write(Export(model, export.example, Path(name)))
        quantized = nncf.quantize(
            openvino.Core().read_model(Path(name) / float_onnx.FILE),
            nncf.Dataset([batch.numpy() for batch in export.calibration]),
            subset_size=len(export.calibration),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=overflow, disable_bias_correction=not config.correct_bias
            ),
        )
        openvino.save_model(quantized, export.folder / FILE, compress_to_fp16=False)


def read(folder: Path, _model: nn.Module) -> Run:
    """Open the file in OpenVINO on the CPU."""
    import openvino

    compiled = openvino.Core().compile_model(folder / FILE, "CPU")

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled(x.cpu().numpy())[0].copy())

    return run


register_format(
    Format("openvino_int8", FILE, write, read, extra="nncf", lossy=True, more_files=(WEIGHTS,))
)
