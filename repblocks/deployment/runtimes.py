"""Open a network in each runtime of this machine, with a number of threads."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.deployment.formats import Format, Run
from repblocks.deployment.formats._session import open_session
from repblocks.deployment.formats.onnx import given_to

_COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True, eq=False)
class Contender:
    """A form of a network in a runtime.

    Args:
        form: ``training form``, ``deployed form`` or the name of a written format.
        runtime: What runs it.
        open: Given a number of threads, gives what runs images. It counts for torch, too, whose
            threads are those of the process.
        given: Gives what it takes from normalised images, which is not timed.
    """

    form: str
    runtime: str
    open: Callable[[int], Run]
    given: Run = lambda images: images


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_contenders(form: str, model: nn.Module) -> list[Contender]:
    """Give the ways in which torch runs a network on the CPU: three, or two without a compiler.

    Args:
        form: What the network is called.
        model: In evaluation mode.
    """
    found = [
        Contender(form, "PyTorch", lambda _threads: model),
        Contender(form, "PyTorch, channels_last", lambda _threads: _channels_last(model)),
    ]
    if has_compiler():
        found.append(Contender(form, "torch.compile", lambda _threads: _compiled(model)))
    return found


def has_compiler() -> bool:
    """Whether torch.compile finds a compiler of C++."""
    return any(map(shutil.which, _COMPILERS))


def file_contender(form: Format, folder: Path, model: nn.Module) -> Contender:
    """Give the runtime of a written form, by its file; torch's own loaders run in torch.

    Args:
        form: Its format.
        folder: Where its file is.
        model: The network that was written.
    """
    path = folder / form.file
    if path.suffix == ".onnx":
        return Contender(
            form.name,
            "ONNX Runtime",
            lambda threads: open_onnx(path, threads),
            given_to(open_session(path), folder),
        )
    if path.suffix == ".xml":
        return Contender(form.name, "OpenVINO", lambda threads: open_openvino(path, threads))
    return Contender(form.name, "its loader", lambda _threads: form.read(folder, model))


def open_onnx(path: Path, threads: int) -> Run:
    """Open an ONNX file in ONNX Runtime on the CPU.

    Threads that wait do not spin: they would take the time of what is measured in turn.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run


def open_openvino(path: Path, threads: int) -> Run:
    """Open an ONNX file or an IR in OpenVINO on the CPU, in float32 where it is in float32."""
    import openvino

    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def run(x: Tensor) -> Tensor:
        found = compiled(x.numpy(), share_inputs=True)
        return torch.from_numpy(found[0])

    return run


def all_contenders(
    training_form: nn.Module, folded: nn.Module, formats: Sequence[Format], folder: Path
) -> list[Contender]:
    """Give each form in each runtime: the training form as it is trained, and all deployed ones."""
    files = [file_contender(form, folder, folded) for form in formats if not _is_weights(form)]
    return [
        Contender("training form", "PyTorch", lambda _threads: training_form),
        *torch_contenders("deployed form", folded),
        *files,
    ]


def _is_weights(form: Format) -> bool:
    """Tell whether a file is the deployed form in torch, which is timed anyway."""
    return Path(form.file).suffix == ".safetensors"


def _channels_last(model: nn.Module) -> Run:
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def run(x: Tensor) -> Tensor:
        result: Tensor = twin(x.contiguous(memory_format=torch.channels_last))
        return result

    return run


def _compiled(model: nn.Module) -> Run:
    """Compile for each shape, with weights packed for the CPU."""
    run: Run = torch.compile(model, dynamic=False, options={"freezing": True})
    return run
