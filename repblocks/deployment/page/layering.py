"""Where the boxes of a drawing stand: rows from the input to the output, branches side by side.

Source:
    Sugiyama et al., Methods for visual understanding of hierarchical system structures, 1981.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

_SWEEPS = 8


@dataclass(frozen=True)
class Layout:
    """Places in units of one box: columns may be fractions.

    Args:
        places: Column and row of each node; the first is the input's, in the order given.
        edges: The points of each edge, from what is read to who reads it.
        columns: How many boxes would fit beside each other.
        rows: How many rows there are.
    """

    places: tuple[tuple[float, int], ...]
    edges: tuple[tuple[tuple[float, int], ...], ...]
    columns: float
    rows: int


def lay_out(inputs: Sequence[Sequence[int]]) -> Layout:
    """Place the nodes of a graph.

    Args:
        inputs: For each node the numbers of the nodes before it that it reads.
    """
    rows: list[int] = []
    for read in inputs:
        rows.append(1 + max((rows[one] for one in read), default=-1))
    chains = [(one, node) for node, read in enumerate(inputs) for one in read]
    neighbours, paths = _with_bends(rows, chains)
    lines = [[n for n, row in enumerate(rows) if row == i] for i in range(max(rows) + 1)]
    columns = _columns(lines, neighbours)
    least = min(columns.values())
    places = [(columns[node] - least, rows[node]) for node in range(len(rows))]
    return Layout(
        places=tuple(places[: len(inputs)]),
        edges=tuple(tuple(places[node] for node in path) for path in paths),
        columns=max(columns.values()) - least + 1,
        rows=len(lines),
    )


def _with_bends(
    rows: list[int], edges: Sequence[tuple[int, int]]
) -> tuple[dict[int, tuple[list[int], list[int]]], list[list[int]]]:
    """Give a long edge a bend in each row that it passes; they are nodes after the others."""
    paths = []
    for start, end in edges:
        path = [start]
        for row in range(rows[start] + 1, rows[end]):
            path.append(len(rows))
            rows.append(row)
        paths.append([*path, end])
    neighbours: dict[int, tuple[list[int], list[int]]] = {n: ([], []) for n in range(len(rows))}
    for path in paths:
        for above, below in pairwise(path):
            neighbours[below][0].append(above)
            neighbours[above][1].append(below)
    return neighbours, paths


def _columns(
    lines: list[list[int]], neighbours: dict[int, tuple[list[int], list[int]]]
) -> dict[int, float]:
    """Draw each node towards its neighbours, down and up in turn, and keep boxes apart."""
    columns = {node: float(place) for line in lines for place, node in enumerate(line)}
    for sweep in range(2 * _SWEEPS):
        is_down = sweep % 2 == 0
        for line in lines if is_down else reversed(lines):
            wanted = {
                node: mean(columns[other] for other in near) if near else columns[node]
                for node in line
                for near in [neighbours[node][0 if is_down else 1]]
            }
            if sweep < _SWEEPS:
                line.sort(key=wanted.__getitem__)
            columns.update(_apart(line, wanted))
    return columns


def _apart(line: Sequence[int], wanted: dict[int, float]) -> dict[int, float]:
    """Keep the order and one box of distance, as near to the wanted columns as that allows."""
    runs: list[list[int]] = []
    starts: list[float] = []
    for node in line:
        runs.append([node])
        starts.append(wanted[node])
        while len(runs) > 1 and starts[-2] + len(runs[-2]) > starts[-1]:
            runs[-2:] = [runs[-2] + runs[-1]]
            starts[-2:] = [mean(wanted[n] - place for place, n in enumerate(runs[-1]))]
    return {
        node: start + place
        for run, start in zip(runs, starts, strict=True)
        for place, node in enumerate(run)
    }
