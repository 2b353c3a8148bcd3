"""One table of all runs of a sweep, on the terminal and in ``summary.csv``."""

from __future__ import annotations

import atexit
import csv
import json
import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table

from repblocks.cli.composing import plain
from repblocks.cli.folders import remove_empty
from repblocks.cli.stopping import Stopped
from repblocks.errors import ConfigurationError, RepblocksError

_logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
COLUMNS = ("run", "overrides", "accuracy", "train_seconds", "deployed_bytes", "latency_ms", "error")
_ONE_OUTPUT = (
    "output={output} would be the folder of every run of the sweep, and holds one. Leave output "
    "out, and set hydra.sweep.dir={output} to have the folders of the runs in it."
)
_HYDRA_FILE = "multirun.yaml"


class Summary(Callback):
    """Collect what each run of a sweep wrote about itself, and why the others failed."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse one folder for all runs.

        Nothing is left behind if a sweep is refused, here or by Hydra, which writes a file first.
        """
        atexit.register(_remove_unused, Path(config.hydra.sweep.dir).absolute())
        output = plain(config, resolve=False)["output"]
        if output is not None and "${" not in str(output):
            # Hydra would make a warning of an Exception.
            raise Stopped from ConfigurationError(_ONE_OUTPUT.format(output=output))

    def on_job_end(
        self,
        config: DictConfig,
        job_return: JobReturn,
        **_: Any,
    ) -> None:
        """Write the table of the runs so far, so that it outlives the sweep."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if job_return.status == JobStatus.FAILED:
            _write_failure(config, job_return._return_value)
            # Hydra would end the sweep without its table; it is on_multirun_end that fails it.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        write_summary(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table, and exit with 2 if a run failed."""
        folder = Path(config.hydra.sweep.dir)
        rows = read_summaries(folder)
        num_failed = sum("error" in row for row in rows)
        shown = COLUMNS[:-1]
        # A value that is cut off would not tell two runs apart.
        table = Table(*(Column(name, overflow="fold") for name in shown))
        table.caption = str(folder / "summary.csv")
        overrides = [row["overrides"].split() for row in rows]
        for row, own in zip(rows, overrides, strict=True):
            # What all runs share says nothing about one of them.
            row["overrides"] = " ".join(
                text for text in own if not all(text in others for others in overrides)
            )
            if "error" in row:
                row["accuracy"] = "failed"
            table.add_row(*(_shown(row.get(column)) for column in shown))
        Console().print(table)
        if num_failed:
            sys.stderr.write(f"{num_failed} of {len(rows)} runs failed.\n")
            sys.exit(2)


def _write_failure(config: DictConfig, error: Exception) -> None:
    """Say why a run failed, now and in its row."""
    name = config.hydra.job.num
    is_mistake = isinstance(error, (RepblocksError, OSError))
    _logger.error("Run %s failed: %s", name, error, exc_info=None if is_mistake else error)
    folder = Path(config.hydra.runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    row = {
        "overrides": " ".join(text.lstrip("+") for text in config.hydra.overrides.task),
        "error": " ".join(str(error).split()) or type(error).__name__,
    }
    (folder / SUMMARY).write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")


def _remove_unused(folder: Path) -> None:
    """Remove the folder of a sweep that had no run."""
    if [path.name for path in folder.glob("*")] == [_HYDRA_FILE]:
        (folder / _HYDRA_FILE).unlink()
        remove_empty(folder)


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
