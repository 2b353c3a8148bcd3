"""Open an ONNX file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from repblocks.deployment.formats._registry import Run


def open_session(path: Path) -> Run:
    """Give an ONNX file with the input ``input`` and the output ``output`` as a callable."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["output"], {"input": x.cpu().numpy()})[0])

    return run
