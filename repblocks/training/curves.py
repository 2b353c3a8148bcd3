"""One picture of metrics.csv: loss and accuracy over the updates."""

from __future__ import annotations

import csv
from pathlib import Path


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read each column of a metrics file as (steps, values), without its empty cells."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return columns


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw the training curves.

    Args:
        metrics: The ``metrics.csv`` of a run.
        picture: The PNG to write, whole or not at all.
    """
    from matplotlib.figure import Figure  # slow to import, and needed once in a run

    columns = read_metrics(metrics)
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = (("loss", ("train_loss", "val_loss")), ("accuracy", ("val_top1", "val_top5")))
    for axes, (title, names) in zip(figure.subplots(1, 2), panels, strict=True):
        shown = [name for name in names if name in columns]
        for name in shown:
            axes.plot(*columns[name], label=name)
        axes.set(title=title, xlabel="update")
        if shown:
            axes.legend()
    partial = picture.with_name(picture.name + ".part")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(picture)
