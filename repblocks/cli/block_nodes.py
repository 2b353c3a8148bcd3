"""The config group ``block``, read from the source of the blocks.

Importing the blocks imports torch, which takes longer than ``--help`` may. What is read here are
the lines that register a block: its name, and the keyword-only arguments of ``build_branches``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def block_nodes() -> dict[str, dict[str, Any]]:
    """Give a node for each conv block, and ``default`` for the block that a network has itself."""
    spec = find_spec("repblocks.blocks")
    folders = [] if spec is None else spec.submodule_search_locations or []
    options: dict[str, dict[str, Any]] = {"default": {}}
    for folder in folders:
        for path in sorted(Path(folder).glob("[!_]*.py")):
            options |= dict(_registered(ast.parse(path.read_text(encoding="utf-8"))))
    return {
        name: {
            "name": None if name == "default" else name,
            "kernel_size": None,
            **own,
            "options": "${block_options:}",
        }
        for name, own in options.items()
    }


def _registered(module: ast.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give name and options of each class that is decorated with ``register_block``."""
    for cls in module.body:
        if not isinstance(cls, ast.ClassDef):
            continue
        for call in cls.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "register_block":
                yield ast.literal_eval(call.args[0]), _options(cls)


def _options(cls: ast.ClassDef) -> dict[str, Any]:
    """Give the keyword-only arguments of ``build_branches``; one without a default is required."""
    builders = [f for f in cls.body if isinstance(f, ast.FunctionDef)]
    return {
        argument.arg: "???" if default is None else ast.literal_eval(default)
        for builder in builders
        if builder.name == "build_branches"
        for argument, default in zip(builder.args.kwonlyargs, builder.args.kw_defaults, strict=True)
    }
