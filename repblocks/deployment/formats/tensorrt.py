"""TensorRT: an engine that is built for the GPU of this machine."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.deployment.formats import onnx
from repblocks.deployment.formats._registry import (
    Export,
    Format,
    Run,
    register_format,
)
from repblocks.deployment.onnx_options import OnnxOptions

FILE = "model.engine"

# Smallest, usual and largest batch that the engine is built for; more images are run in parts.
_BATCHES = (1, 8, 32)


def write(export: Export) -> None:
    """Build the engine from the network's ONNX form, in float32 without TF32."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(_graph(export)):
        raise RuntimeError(f"TensorRT cannot read the ONNX form: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape("input", *((count, *export.example.shape[1:]) for count in _BATCHES))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("TensorRT built no engine.")
    (export.folder / FILE).write_bytes(engine)


def read(folder: Path, _model: nn.Module) -> Run:
    """Load the engine; the GPU code in it runs."""
    import tensorrt as trt

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine((folder / FILE).read_bytes())
    if engine is None:
        raise RuntimeError(f"{FILE} was built by another version, for another GPU, or is damaged.")
    context = engine.create_execution_context()

    def run(x: Tensor) -> Tensor:
        starts = range(0, len(x), _BATCHES[-1])
        return torch.cat([_execute(context, x[i : i + _BATCHES[-1]].cuda()) for i in starts]).cpu()

    return run


def _graph(export: Export) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        onnx.write(replace(export, folder=Path(folder), onnx=OnnxOptions()))
        return (Path(folder) / onnx.FILE).read_bytes()


def _execute(context: Any, images: Tensor) -> Tensor:
    images = images.contiguous()
    context.set_input_shape("input", tuple(images.shape))
    output = torch.empty(tuple(context.get_tensor_shape("output")), device=images.device)
    context.set_tensor_address("input", images.data_ptr())
    context.set_tensor_address("output", output.data_ptr())
    context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return output


def _lacks() -> str:
    if torch.cuda.is_available():
        return ""
    return "needs an NVIDIA GPU, and torch finds none. Deploy on the machine that is to run it."


register_format(
    Format("tensorrt", FILE, write, read, extra="tensorrt", executable=True, lacks=_lacks)
)
