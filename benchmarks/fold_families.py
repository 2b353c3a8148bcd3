"""Fold the smallest network of each of timm's families, beside timm's own folding.

    uv run benchmarks/fold_families.py [NAME ...]

One line a network: convolutions / linear layers / BatchNorms / additions that one run executes and
its millions of multiply-adds (two images), each before, after ``fold``, and after
``timm.utils.reparameterize_model``; the error in float64 relative to how much the output depends
on the input; the seconds of ``fold`` without verification, on one thread in float64; the opaque
modules; and what broke. The exit status is 1 if anything did.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from timm.utils import reparameterize_model

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(Path(__file__).parent), str(TESTS), str(TESTS / "folding")]
from _interleaved import print_table  # noqa: E402

# What lies with the tests has no types.
from call_tape import executed  # type: ignore[import-not-found]  # noqa: E402
from family_nets import NETS, build  # type: ignore[import-not-found]  # noqa: E402
from fold_promises import judge  # type: ignore[import-not-found]  # noqa: E402
from left_norms import false_reasons  # type: ignore[import-not-found]  # noqa: E402

TOLERANCE = 1e-9
HEADER = [
    *("network", "calls before", "after", "timm", "MMACs before", "after", "timm"),
    *("error", "signal", "seconds", "opaque", "broken"),
]


def main() -> int:
    """Fold the networks and print the table."""
    parser = argparse.ArgumentParser(description="Fold the networks of timm.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or NETS
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [row(name) for name in track(names, console=Console(stderr=True))]
    print_table("timm, convolutions/linear/BatchNorm/additions", HEADER, rows)
    wrong = sum(bool(cells[-1]) for cells in rows)
    print(f"{len(rows)} networks, {wrong} with a broken promise")
    return 1 if wrong else 0


def row(name: str) -> list[str]:
    """Fold one network and lay out what was measured."""
    model, x = build(name)
    try:
        judged = judge(model, x, TOLERANCE, larger=32)
    except Exception as error:  # noqa: BLE001  # any error of the fold is what is looked for
        return [name, *[""] * 10, f"{type(error).__name__}: {error}"[:200]]
    theirs = executed(reparameterize_model(copy.deepcopy(model)).to(x), x)
    broken = judged.broken + false_reasons(model, x, judged.report, judged.after["norms"])
    counts = [judged.before, judged.after, theirs]
    numbers = [f"{judged.error:.1e}", f"{judged.signal:.1e}", f"{judged.seconds:.1f}"]
    opaque = sum(left.reason == "opaque" for left in judged.report.left)
    costs = [f"{found['macs'] / 1e6:.2f}" for found in counts]
    return [name, *map(calls, counts), *costs, *numbers, str(opaque), "; ".join(broken)]


def calls(counts: Counter[str]) -> str:
    """Write the calls as one cell."""
    return "/".join(str(counts[what]) for what in ("convs", "linears", "norms", "adds"))


if __name__ == "__main__":
    sys.exit(main())
