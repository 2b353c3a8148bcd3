"""ExecuTorch: the network for phones and boards, run by XNNPACK; one image at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from repblocks.deployment.formats._program import export_program, silence, silence_native
from repblocks.deployment.formats._registry import Export, Format, Run, register_format

FILE = "model.pte"


def write(export: Export) -> None:
    """Write the network for a batch of 1: its runtime plans all memory beforehand."""
    with silence():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = export_program(export.model, export.example[:1], free=())
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        (export.folder / FILE).write_bytes(lowered.to_executorch().buffer)


def read(folder: Path, _model: nn.Module) -> Run:
    """Load the file in ExecuTorch's runtime; a batch is run image by image."""
    with silence_native():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(folder / FILE)
        forward = program.load_method("forward")
    if forward is None:
        raise RuntimeError(f"{FILE} has no method 'forward'.")

    def run(x: Tensor) -> Tensor:
        # What is returned lies in the program's memory, which the next image overwrites.
        return torch.cat([forward.execute((image[None],))[0].clone() for image in x.cpu()])

    return run


register_format(Format("executorch", FILE, write, read, extra="executorch"))
