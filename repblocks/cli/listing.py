"""``repblocks list``: blocks and networks with their options, as the registries have them."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

_FROM_SHAPE = ("in_channels", "out_channels", "dim")


def main() -> None:
    """Do what the command line of ``repblocks`` says."""
    parser = argparse.ArgumentParser(
        prog="repblocks",
        description="Train with many branches, deploy one convolution.",
        epilog="repblocks-train and repblocks-deploy are commands of their own.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="print blocks, networks and their options")
    listing.set_defaults(run=print_lists)
    parser.parse_args().run()


def print_lists() -> None:
    """Print the tables."""
    import timm

    import repblocks.models  # noqa: F401 - registers our networks with timm
    from repblocks.blocks import CONV_BLOCKS, STAGE_BLOCKS

    console = Console()
    for title, registry in (("conv block", CONV_BLOCKS), ("stage block", STAGE_BLOCKS)):
        console.print(_table(title, {name: registry[name] for name in registry}))
    names = timm.list_models("repblocks_*")
    console.print(_table("network", {name: timm.model_entrypoint(name) for name in names}))


def _table(title: str, entries: dict[str, Callable[..., Any]]) -> Table:
    table = Table(title, "what it is", "options")
    for name, entry in entries.items():
        what = (inspect.getdoc(entry) or "").partition("\n")[0]
        table.add_row(name, what, "\n".join(_options(entry)))
    return table


def _options(entry: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(entry).parameters.values()
    return [
        p.name if p.default is inspect.Parameter.empty else f"{p.name}={p.default!r}"
        for p in parameters
        if p.name not in _FROM_SHAPE and p.kind is not inspect.Parameter.VAR_KEYWORD
    ]


if __name__ == "__main__":
    main()
