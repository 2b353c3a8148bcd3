"""torch.export's archive: the network without its Python classes, for torch and its compilers."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from repblocks.deployment.formats._program import export_program, silence
from repblocks.deployment.formats._pt2_archive import load_program
from repblocks.deployment.formats._registry import Export, Format, Run, register_format

FILE = "model.pt2"


def write(export: Export) -> None:
    """Write the network for any batch size, without sample inputs."""
    # torch ends the process if a disk is full; Python raises.
    content = io.BytesIO()
    with silence():
        torch.export.save(export_program(export.model, export.example), content)
    (export.folder / FILE).write_bytes(content.getbuffer())


def read(folder: Path, _model: nn.Module) -> Run:
    """Load the archive as a module; anything but a plain graph in it is refused."""
    with silence():
        return load_program(folder / FILE).module(check_guards=False)


register_format(Format("pt2", FILE, write, read))
