"""``deploy.py check ARTIFACT``: check an artifact again, on this machine."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from repblocks.errors import RepblocksError, printable

COMMAND = "check"
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def check_main(arguments: Sequence[str]) -> int:
    """Check the artifact that the command line names, and print what was found.

    Args:
        arguments: What follows ``check``.

    Returns:
        The exit code: 0, or 2 if something failed.
    """
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} {COMMAND}",
        description="Check the files of an artifact against its manifest, open each form that can "
        "be opened here, and compare the forms with each other.",
    )
    parser.add_argument("artifact", type=Path, help="the folder that deploy.py wrote")
    parser.add_argument(
        "trust",
        nargs="?",
        choices=("trust=true", "trust=false"),
        default="trust=false",
        help="whether forms that hold code are opened",
    )
    wanted = parser.parse_args(arguments)
    # torch takes seconds to load, and --help does without it.
    from repblocks.deployment.checking import check_artifact

    try:
        checks = check_artifact(wanted.artifact, trust=wanted.trust == "trust=true")
    except (RepblocksError, OSError) as error:
        sys.stderr.write(printable(f"{error}\n", keep="\n"))
        return 2
    table = Table("", "", Column("", overflow="fold"), title=Text(printable(str(wanted.artifact))))
    for check in checks:
        style = _STYLES[check.status]
        name, note = Text(printable(check.name)), Text(printable(check.note, keep="\n"))
        table.add_row(name, Text(check.status, style=style), note)
    counts = Counter[str](check.status for check in checks)
    table.caption = ", ".join(f"{counts[status]} {status}" for status in _STYLES)
    Console().print(table)
    return 2 if counts["failed"] else 0
