"""Fold random linear regions for a long time, and count: folded, unchanged, refused, wrong.

    uv run benchmarks/fuzz.py --cases 20000 --seed 0

Case ``i`` is the region of seed ``--seed + i``. The exit status is 1 if any fold broke a promise
(the function, the input model, the cost, the same plan twice); its seeds are printed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(Path(__file__).parent), str(TESTS), str(TESTS / "folding")]
from _interleaved import print_table  # noqa: E402

# What lies with the tests has no types.
from fold_promises import judge  # type: ignore[import-not-found]  # noqa: E402
from linear_regions import random_region  # type: ignore[import-not-found]  # noqa: E402

TOLERANCE = 1e-10


def main() -> int:
    """Run the cases and print the table."""
    arguments = parse()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
    counts: Counter[str] = Counter()
    wrong: dict[str, list[int]] = defaultdict(list)
    seeds = range(arguments.seed, arguments.seed + arguments.cases)
    for seed in track(seeds, console=Console(stderr=True)):
        found, broken = run(seed)
        counts.update(found)
        for promise in broken:
            wrong[promise].append(seed)
    counts["wrong"] = len({seed for seeds_of in wrong.values() for seed in seeds_of})
    print_table("Random linear regions", ["what", "cases"], rows(counts, len(seeds)))
    if wrong:
        shown = [[what, str(len(s)), ", ".join(map(str, s[:20]))] for what, s in wrong.items()]
        print_table("Wrong", ["what", "cases", "seeds"], shown)
    return 1 if wrong else 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def run(seed: int) -> tuple[set[str], set[str]]:
    """Fold the region of a seed; say what became of it, and which promises broke."""
    try:
        region, x = random_region(seed)
        judged = judge(region, x, TOLERANCE)
    except Exception as error:  # noqa: BLE001  # any error is what is looked for
        return {"raised"}, {f"{type(error).__name__}: {error}"[:100]}
    report = judged.report
    found = {f"refused: {left.reason}" for left in report.left}
    found.add("folded" if report.folded else "unchanged")
    if judged.after["convs"] + judged.after["linears"] == 1 and not judged.after["norms"]:
        found.add("folded into one layer" if report.folded else "one layer from the start")
    return found, {promise.split(":")[0] for promise in judged.broken}


def rows(counts: Counter[str], cases: int) -> list[list[str]]:
    """Lay out the counts, the verdict last."""
    names = sorted(counts, key=lambda name: (name == "wrong", name.startswith("refused"), name))
    return [[name, f"{counts[name]} ({100 * counts[name] / cases:.1f} %)"] for name in names]


if __name__ == "__main__":
    sys.exit(main())
