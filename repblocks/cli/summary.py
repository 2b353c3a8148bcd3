"""One table of all runs of a sweep, on the terminal and in ``summary.csv``."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

SUMMARY = "summary.json"
COLUMNS = ("run", "overrides", "accuracy", "train_seconds", "deployed_bytes", "latency_ms")


class Summary(Callback):
    """Collect what each run of a sweep wrote about itself."""

    def on_job_end(
        self,
        config: DictConfig,
        job_return: JobReturn,  # noqa: ARG002 - Hydra passes it by name
        **_: Any,
    ) -> None:
        """Write the table of the runs so far, so that it outlives a run that fails."""
        if config.hydra.mode == RunMode.MULTIRUN:
            write_summary(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table."""
        folder = Path(config.hydra.sweep.dir)
        table = Table(*COLUMNS, caption=str(folder / "summary.csv"))
        rows = read_summaries(folder)
        overrides = [row["overrides"].split() for row in rows]
        for row, own in zip(rows, overrides, strict=True):
            # What all runs share says nothing about one of them.
            row["overrides"] = " ".join(
                text for text in own if not all(text in others for others in overrides)
            )
            table.add_row(*(_shown(row.get(column)) for column in COLUMNS))
        Console().print(table)


def read_summaries(folder: Path) -> list[dict[str, Any]]:
    """Read what the runs in a folder wrote about themselves, in their order."""
    found = [(path.parent.name, path) for path in folder.glob(f"*/{SUMMARY}")]
    found.sort(key=lambda item: (len(item[0]), item[0]))
    return [{"run": name, **json.loads(path.read_text())} for name, path in found]


def write_summary(folder: Path) -> None:
    """Write ``summary.csv``, whole."""
    rows = read_summaries(folder)
    if not rows:
        return
    partial = folder / "summary.csv.part"
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(folder / "summary.csv")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
