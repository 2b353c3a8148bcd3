"""TorchScript, for stacks from before ``torch.export``: C++ servers and the old mobile runtime."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repblocks.deployment.formats._program import silence
from repblocks.deployment.formats._registry import Export, Format, Run, register_format

FILE = "model.torchscript.pt"

_jit: Any = torch.jit  # it has no types

# What lets an error name the lines of Python that were traced: folders of this machine.
_TRACES = ".debug_pkl"


def write(export: Export) -> None:
    """Write the traced network, for the full interpreter and for that of phones."""
    with silence(), torch.no_grad():
        traced = _jit.trace(export.model, export.example, check_trace=False)
        frozen = _without_traces(_jit.freeze(traced))
        frozen._save_for_lite_interpreter(str(export.folder / FILE))


def read(folder: Path, _model: nn.Module) -> Run:
    """Load the file; the code in it runs."""
    with silence():
        return _jit.load(str(folder / FILE), map_location="cpu")


def _without_traces(module: Any) -> Any:
    """Give the same module as if its code had been written by hand."""
    full, bare = io.BytesIO(), io.BytesIO()
    _jit.save(module, full)
    with zipfile.ZipFile(full) as before, zipfile.ZipFile(bare, "w") as after:
        for entry in before.infolist():
            if not entry.filename.endswith(_TRACES):
                after.writestr(entry, before.read(entry))
    bare.seek(0)
    return _jit.load(bare)


register_format(Format("torchscript", FILE, write, read, executable=True))
