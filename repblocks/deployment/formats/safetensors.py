"""Weights as safetensors: read by timm, by `repblocks.load` and by anything else; runs no code."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from repblocks.deployment.formats._registry import Export, Format, Run, register_format
from repblocks.deployment.load import WEIGHTS_FILE, is_rebuildable, load


def write(export: Export) -> None:
    """Write the weights; tied ones are written once each, so that every name can be read."""
    weights = {
        name: t.detach().cpu().contiguous().clone() for name, t in export.model.state_dict().items()
    }
    save_file(weights, export.folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read(folder: Path, model: nn.Module) -> Run:
    """Rebuild the network from the folder, or fill a copy of it where no name can rebuild it."""
    if is_rebuildable(folder):
        return load(folder)
    twin = copy.deepcopy(model)
    twin.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return twin


register_format(Format("safetensors", WEIGHTS_FILE, write, read))
