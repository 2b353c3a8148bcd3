"""ONNX in one file with its weights inside, for ONNX Runtime, TensorRT, OpenVINO and others."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from repblocks.deployment.formats._onnx_file import check_self_contained
from repblocks.deployment.formats._program import export_program, silence
from repblocks.deployment.formats._registry import Export, Format, Run, register_format

FILE = "model.onnx"


def write(export: Export) -> None:
    """Write the network with the input ``input``, the output ``output`` and any batch size."""
    import onnx

    path = export.folder / FILE
    with silence():
        program = torch.onnx.export(
            export_program(export.model, export.example),
            (export.example,),
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program.")
        program.save(path, external_data=False)
        onnx.checker.check_model(path, full_check=True)


def read(folder: Path, _model: nn.Module) -> Run:
    """Open the file in ONNX Runtime on the CPU."""
    import onnxruntime

    check_self_contained(folder / FILE)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        folder / FILE, options, providers=["CPUExecutionProvider"]
    )

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["output"], {"input": x.cpu().numpy()})[0])

    return run


register_format(Format("onnx", FILE, write, read))
