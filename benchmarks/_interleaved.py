"""Time functions in turn, in one process, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    repeats: int = 3,
    finish: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Return the median time of one call of each function, in milliseconds.

    Args:
        functions: What to time, by name.
        rounds: How often all are timed, one after the other.
        repeats: Calls in a row that make one measurement.
        finish: Waits for what the functions began, on a GPU.
    """
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 2):
        for name, function in functions.items():
            finish()
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            finish()
            if number >= 2:  # the first rounds warm up
                spent[name].append((time.perf_counter() - start) / repeats * 1000)
    return {name: median(times) for name, times in spent.items()}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under a title, in Markdown and whole where it goes into a file."""
    table = Table(*columns, title=title, box=MARKDOWN)
    for row in rows:
        table.add_row(*row)
    is_file = not Console().is_terminal
    Console(width=1000 if is_file else None).print(table)
