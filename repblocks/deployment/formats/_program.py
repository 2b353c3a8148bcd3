"""One exported graph with a free batch size, from which the graph formats are written."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram


def export_program(model: nn.Module, example: Tensor) -> ExportedProgram:
    """Export a network for any batch size.

    Args:
        model: In evaluation mode.
        example: ``(N, C, H, W)`` with ``N >= 2``: torch would bake a batch of 1 in.
    """
    program = torch.export.export(model, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
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
