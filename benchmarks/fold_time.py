"""Time a fold beside one copy and one run of the model, on one thread in float32.

    uv run benchmarks/fold_time.py [NAME ...]

Names are those of timm, images are 1 x 3 x 224 x 224. ``beyond`` is what a fold without
verification takes more than the copy and the run; ``verify`` is what verification adds to that.
"""

from __future__ import annotations

import argparse
import copy

import timm
import torch
from _interleaved import print_table, time_interleaved
from torch import Tensor, nn

from repblocks import fold

NAMES = ["repvgg_b3", "repvgg_a0", "mobileone_s0", "resnet50", "repvit_m0_9", "fastvit_t8"]


def main() -> None:
    """Time the networks and print the table."""
    parser = argparse.ArgumentParser(description="Time folds.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    torch.set_num_threads(1)
    rows = [row(name) for name in parser.parse_args().names or NAMES]
    print_table("Folds, seconds", ["network", "copy and run", "fold", "beyond", "verify"], rows)


def row(name: str) -> list[str]:
    """Time one network."""
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    functions = {
        "copy": lambda: copied_and_run(model, x),
        "fold": lambda: fold(model, x, verify=False),
        "both": lambda: fold(model, x),
    }
    found = time_interleaved(functions, rounds=5, repeats=1)
    seconds = {key: value / 1000 for key, value in found.items()}
    beyond, verify = seconds["fold"] - seconds["copy"], seconds["both"] - seconds["fold"]
    return [name, *(f"{s:.2f}" for s in (seconds["copy"], seconds["fold"], beyond, verify))]


def copied_and_run(model: nn.Module, x: Tensor) -> Tensor:
    """Do what no fold can do without."""
    with torch.no_grad():
        result: Tensor = copy.deepcopy(model)(x)
    return result


if __name__ == "__main__":
    main()
