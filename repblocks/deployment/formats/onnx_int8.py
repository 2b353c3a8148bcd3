"""ONNX with 8-bit weights and activations, quantized by and for ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repblocks.deployment.formats import onnx as float_onnx
from repblocks.deployment.formats._program import silence
from repblocks.deployment.formats._registry import Export, Format, Run, register_format
from repblocks.deployment.formats._session import callable_of, open_session
from repblocks.deployment.quantization.preparation import prepared

FILE = "model_int8.onnx"


def write(export: Export) -> None:
    """Write the network with quantize and dequantize steps, which runtimes turn into integers."""
    from onnxruntime import quantization as ort

    model = prepared(export.model, export.calibration, export.quantization)
    with tempfile.TemporaryDirectory() as name, silence():
        folder = Path(name)
        float_onnx.write(Export(model, export.example, folder))
        ort.quant_pre_process(folder / float_onnx.FILE, folder / "prepared.onnx")
        ort.quantize_static(
            folder / "prepared.onnx",
            export.folder / FILE,
            _Reader(export.calibration),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=export.quantization.half_range,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
        )


def read(folder: Path, _model: nn.Module) -> Run:
    """Open the file in ONNX Runtime on the CPU."""
    return callable_of(open_session(folder / FILE))


class _Reader:
    """Hand the images out as the quantizer asks for them."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Give the next batch, or None at the end."""
        batch = next(self._left, None)
        return None if batch is None else {"input": batch.numpy()}


register_format(Format("onnx_int8", FILE, write, read, lossy=True))
