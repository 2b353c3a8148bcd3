"""One exported graph with a free batch size, from which the graph formats are written."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram


def export_program(
    model: nn.Module, example: Tensor, free: tuple[int, ...] = (0,)
) -> ExportedProgram:
    """Export a network, by default for any batch size.

    Args:
        model: In evaluation mode.
        example: ``(N, C, H, W)`` with ``N >= 2``: torch would bake a batch of 1 in.
        free: The dimensions of the input that may change.
    """
    dims = dict.fromkeys(free, Dim.DYNAMIC)
    program = torch.export.export(model, (example,), dynamic_shapes=(dims,))
    # What each node keeps of the Python stack names folders of this machine, and an example
    # input may be somebody's image: neither belongs in a file that is given away.
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the exporters' prints, warnings and log lines from the user; errors still raise."""
    before = logging.root.manager.disable
    quiet = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def silence_native() -> Iterator[None]:
    """Keep what a runtime's own code writes to standard error from the user, too."""
    sys.stderr.flush()
    before = os.dup(2)
    with Path(os.devnull).open("w") as nowhere, silence():
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
