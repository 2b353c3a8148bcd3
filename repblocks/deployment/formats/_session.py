"""Open an ONNX file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repblocks.deployment.formats._onnx_file import check_self_contained
from repblocks.deployment.formats._registry import Run


def open_session(path: Path) -> Any:
    """Open a file that needs no other, on the CPU, as an ``onnxruntime.InferenceSession``.

    Raises:
        CheckpointError: if it reads other files.
    """
    import onnxruntime

    check_self_contained(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def callable_of(session: Any) -> Run:
    """Give a session with the input ``input`` and the output ``output`` as a callable."""

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["output"], {"input": x.cpu().numpy()})[0])

    return run
