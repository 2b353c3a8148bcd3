"""Run a whole ONNX file, in ONNX Runtime wherever that has kernels for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from repblocks.deployment.onnx_fold.reading import every_node, is_standard
from repblocks.errors import ConfigurationError

_SILENT = 4


@dataclass(frozen=True, eq=False)
class Runtime:
    """An ONNX file, ready to run.

    Args:
        name: What runs it.
        run: From the inputs to the outputs of these names.
    """

    name: str
    run: Callable[[Sequence[Tensor], Sequence[str]], tuple[Tensor, ...]]


def open_file(path: Path, example: Sequence[Tensor], names: Sequence[str]) -> Runtime:
    """Open a file in ONNX Runtime, or where that has no kernel for it in ONNX's own evaluator.

    Args:
        path: The file.
        example: Inputs that it must take.
        names: Of the inputs.

    Raises:
        ConfigurationError: if neither runs it.
    """
    try:
        opened = _session(path, names)
        opened.run(example, [])
    except Exception as error:  # noqa: BLE001 # it has classes of its own for what can fail
        return _evaluator(path, example, names, error)
    return opened


def _session(path: Path, names: Sequence[str]) -> Runtime:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, session_options(), providers=["CPUExecutionProvider"]
    )
    return _runtime(f"ONNX Runtime {onnxruntime.__version__}", session.run, names)


def session_options() -> Any:
    """Return options of a session that prints nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    return options


def _evaluator(
    path: Path, example: Sequence[Tensor], names: Sequence[str], error: Exception
) -> Runtime:
    from onnx.reference import ReferenceEvaluator

    try:
        model = onnx.load(path)
        opened = _runtime("onnx.reference", ReferenceEvaluator(model).run, names)
        opened.run(example, [])
    except Exception:  # noqa: BLE001 # likewise
        raise _not_run(path, error) from error
    return opened


def _not_run(path: Path, error: Exception) -> ConfigurationError:
    model = onnx.load(path, load_external_data=False)
    known = {(one.domain, one.name) for one in model.functions}
    custom = dict.fromkeys(
        f"{node.domain}.{node.op_type}"
        for node in every_node(model.graph)
        if not is_standard(node) and (node.domain, node.op_type) not in known
    )
    what = f" Operators of other makers in it: {', '.join(custom)}." if custom else ""
    return ConfigurationError(
        f"{path} cannot be run here, so a fold of it could not be verified, and nothing was "
        f"written.{what} ONNX Runtime says: {next(iter(str(error).splitlines()), '')}"
    )


def _runtime(name: str, call: Callable[..., Any], names: Sequence[str]) -> Runtime:
    def run(inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        feeds = {key: x.cpu().numpy() for key, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(np.array(y)) for y in call(list(outputs) or None, feeds))

    return Runtime(name, run)
