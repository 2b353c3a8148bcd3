"""Run a whole ONNX file, in ONNX Runtime wherever that has kernels for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    problems = []
    for attempt in (_session, partial(_session, is_optimized=False), _evaluator):
        try:
            opened = attempt(path, names)
            opened.run(example, [])
        except Exception as error:  # noqa: BLE001 # ONNX Runtime has classes of its own
            problems.append(error)
        else:
            return opened
    raise _not_run(path, problems[0]) from problems[0]


def _session(path: Path, names: Sequence[str], *, is_optimized: bool = True) -> Runtime:
    """Open a file in ONNX Runtime, whose optimizer cannot take all that is valid."""
    import onnxruntime

    options, name = session_options(), f"ONNX Runtime {onnxruntime.__version__}"
    if not is_optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        name += " without its optimizer"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _runtime(name, session.run, names)


def session_options() -> Any:
    """Return options of a session that prints nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    return options


def _evaluator(path: Path, names: Sequence[str]) -> Runtime:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        """Of onnx's own, that of opset 9 takes statistics of the batch."""

        def _run(self, x: Any, *given: Any, epsilon: float = 1e-5, **other: Any) -> tuple[Any]:
            if other.get("training_mode"):
                raise ConfigurationError("A BatchNormalization uses the statistics of each batch.")
            scale, shift, mean, variance = (one.reshape(-1, *(1,) * (x.ndim - 2)) for one in given)
            return ((scale * (x - mean) / np.sqrt(variance + epsilon) + shift).astype(x.dtype),)

    evaluator = ReferenceEvaluator(onnx.load(path), new_ops=[BatchNormalization])
    return _runtime("onnx.reference", evaluator.run, names)


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
