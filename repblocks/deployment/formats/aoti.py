"""AOTInductor's package: the network compiled to machine code, for Python and C++."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from repblocks.deployment.formats._program import export_program, silence
from repblocks.deployment.formats._registry import Export, Format, Run, register_format

FILE = "model.aoti.pt2"


def write(export: Export) -> None:
    """Compile the network for this machine's kind of CPU and any batch size."""
    from torch._inductor import aoti_compile_and_package

    with silence():
        program = export_program(export.model, export.example)
        program.example_inputs = ((export.example,), {})  # the compiler asks for them
        aoti_compile_and_package(program, package_path=str(export.folder / FILE))


def read(folder: Path, _model: nn.Module) -> Run:
    """Load the package; the machine code in it runs."""
    from torch._inductor import aoti_load_package

    with silence():
        package = aoti_load_package(str(folder / FILE))

    def run(x: Tensor) -> Tensor:
        return package(x.cpu())

    return run


def _lacks() -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "needs a C++ compiler, and none was found. Install g++, or set CXX to one."
    return ""


register_format(Format("aoti", FILE, write, read, executable=True, lacks=_lacks))
