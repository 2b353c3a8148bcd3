"""``repblocks list``: blocks and networks with their options, as the registries have them."""

from __future__ import annotations

import argparse
import inspect
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from repblocks.cli.checking import Parameters

_FROM_SHAPE = ("in_channels", "out_channels", "dim")
_NAME_WIDTH = 28


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
        console.print(_table(title, {name: [registry[name]] for name in registry}))
    entries = [timm.model_entrypoint(name) for name in timm.list_models("repblocks_*")]
    families = itertools.groupby(sorted(entries, key=_family), _family)
    console.print(_table("network", {family: list(variants) for family, variants in families}))


def _family(entry: Callable[..., Any]) -> str:
    return entry.__name__.rpartition("_")[0]


def _table(title: str, rows: Mapping[str, Sequence[Callable[..., Any]]]) -> Table:
    """Show one row for each name; options that all rows have are said once."""
    options = {name: _options(variants) for name, variants in rows.items()}
    first, *others = options.values()
    shared = [text for text in first if others and all(text in other for other in others)]
    caption = f"Of each {title}: {', '.join(shared)}" if shared else None
    table = Table(caption=caption, caption_justify="left")
    table.add_column(title, no_wrap=True)
    table.add_column("what it is")
    table.add_column("options")
    for name, variants in rows.items():
        what = (inspect.getdoc(variants[0]) or "").partition("\n")[0].rpartition(": ")[2]
        names = [entry.__name__ for entry in variants]
        endings = [each.removeprefix(f"{name}_") for each in names if each.startswith(f"{name}_")]
        shown = f"{name}_\n{textwrap.fill(', '.join(endings), _NAME_WIDTH)}" if endings else name
        own = [text for text in options[name] if text not in shared]
        table.add_row(shown, what, ", ".join(own))
    return table


def _options(variants: Sequence[Callable[..., Any]]) -> list[str]:
    """Give the options, with their defaults where all variants have the same."""
    first, *others = (inspect.signature(entry).parameters for entry in variants)
    return [
        f"{p.name}={p.default}" if _is_shown(p, others) else p.name
        for p in first.values()
        if p.name not in _FROM_SHAPE and p.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def _is_shown(parameter: inspect.Parameter, others: Sequence[Parameters]) -> bool:
    is_shared = all(other[parameter.name].default == parameter.default for other in others)
    return is_shared and parameter.default not in (inspect.Parameter.empty, None)


if __name__ == "__main__":
    main()
