"""What each block brings on Fashion-MNIST: trained alike, on a plain and on a residual network.

    uv run benchmarks/results.py FOLDER [--jobs 2] [--epochs 1] [--share 0.5] [--blocks NAME ...]

FOLDER holds the four files of Fashion-MNIST. Each run is ``train.py experiment=fashion_mnist`` with
one thread, for every block and seed the same but for the block: the first convolution has stride 2,
and an epoch is ``--share`` of the training images, so that a run is a minute or two. It validates
and folds as any run does. Runs that are in ``--output`` already are not made again.

Then each block is measured in one process, in turn with the plain one: the training step and the
bytes that it keeps in each execution, and the latency of one image in both forms; and the first
seed's run is quantized for ONNX Runtime, by default settings. The table is printed, and written as
JSON and PNG.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import timm
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from _interleaved import print_table, time_interleaved
from int8 import measure as quantized
from training_cost import kept_bytes, training_step

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.blocks import set_execution
from repblocks.folding.switch import fold_blocks

ROOT = Path(__file__).parent.parent
NETWORKS = ("repvgg_tiny", "resnet_cifar_8")
BLOCKS = (
    *("plain", "repvgg", "repvgg_plus", "qarepvgg", "acb", "dbb", "mobileone", "repconv"),
    *("orepa", "do_conv", "expand_conv", "conv3xc", "ecb"),
)
EXECUTIONS = ("branchwise", "auto")
BATCH = 64
REPORT = Path("artifact", "report.json")
HEADER = (
    *("block", "top-1 %", "± seeds", "against plain", "differing"),
    *("branchwise: step", "kept", "auto: step", "kept", "parameters", "folded"),
    *("latency", "folded", "fold error", "INT8"),
)


def folder(output: Path, network: str, block: str, seed: int) -> Path:
    """Name the folder of one run."""
    return output.resolve() / f"{network}-{block}-{seed}"


def train(network: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train all blocks from one seed, one after the other in one process, unless they are there.

    Raises:
        CalledProcessError: if a training fails.
    """
    folders = {b: folder(arguments.output, network, b, seed) for b in arguments.blocks}
    missing = [b for b, place in folders.items() if not (place / REPORT).exists()]
    if not missing:
        return
    command = [
        *(sys.executable, "train.py", "-m", "experiment=fashion_mnist", "export=weights"),
        *(f"model={network}", f"block={','.join(missing)}", f"seed={seed}"),
        *(f"data.root={arguments.data.resolve()}", f"data.batch_size={BATCH}"),
        *(f"trainer.max_epochs={arguments.epochs}", "+model.stem_stride=2"),
        f"+trainer.limit_train_batches={arguments.share}",
        f"hydra.sweep.dir={arguments.output.resolve()}",
        f"hydra.sweep.subdir={network}-${{block.name}}-{seed}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def report(output: Path, network: str, block: str, seed: int) -> dict[str, Any]:
    """Read what the deployment of one run measured."""
    text = (folder(output, network, block, seed) / REPORT).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def accuracy(network: str, block: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Gather the runs of one block, and quantize the first."""
    reports = [report(arguments.output, network, block, seed) for seed in arguments.seeds]
    first = folder(arguments.output, network, block, arguments.seeds[0])
    told = argparse.Namespace(data=str(arguments.data), images=512, formats=["onnx_int8"])
    ((_, _, int8, _),) = quantized(first, {"default": {}}, told)
    top1 = [100 * report["agreement"]["deployed_top1"] for report in reports]
    return {
        "top1": top1,
        "mean": mean(top1),
        "spread": stdev(top1) if len(top1) > 1 else 0.0,
        "int8": 100 * (int8.deployed_top1 - int8.training_top1),
        "differing": max(report["agreement"]["num_differing"] for report in reports),
        "fold_error": max(report["verification"]["rms_rel"] for report in reports),
        "parameters": reports[0]["training_form"]["parameters"],
        "parameters_folded": reports[0]["deployed_form"]["parameters"],
    }


def cost(network: str, block: str, rounds: int) -> dict[str, Any]:
    """Measure one block on a network, in turn with ``plain``."""
    x = torch.randn(BATCH, 1, 28, 28)
    training = {"plain": _network(network, "plain", "branchwise")}
    training |= {name: _network(network, block, name) for name in EXECUTIONS}
    steps = {name: training_step(model, x) for name, model in training.items()}
    seconds = time_interleaved(steps, rounds, repeats=1)
    kept = {name: kept_bytes(model, x) for name, model in training.items()}
    return {
        "step": {name: seconds[name] / seconds["plain"] for name in EXECUTIONS},
        "step_plain_ms": seconds["plain"],
        "kept": {name: kept[name] / kept["plain"] for name in EXECUTIONS},
        "latency_ms": _latency(training["branchwise"], rounds),
    }


def _network(name: str, block: str, execution: str) -> nn.Module:
    options = {"stem_stride": 2, "in_chans": 1, "num_classes": 10}
    model = timm.create_model(f"repblocks_{name}", block=block, **options)
    set_execution(model, execution)
    return model


def _latency(model: nn.Module, rounds: int) -> dict[str, float]:
    before, (after, _) = model.eval(), fold_blocks(model)
    image = torch.randn(1, 1, 28, 28)
    with torch.inference_mode():
        calls = {"training form": lambda: before(image), "folded": lambda: after(image)}
        return time_interleaved(calls, rounds, repeats=10)


def lines(found: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """Lay out the rows of one network."""
    plain = found["plain"]
    return [
        [
            *(name, f"{row['mean']:.2f}", f"{row['spread']:.2f}"),
            *(f"{row['mean'] - plain['mean']:+.2f}", str(row["differing"])),
            *(f"{row[key][form]:.2f}" for form in EXECUTIONS for key in ("step", "kept")),
            *(f"{row['parameters']:,}", f"{row['parameters_folded']:,}"),
            *(f"{taken:.2f} ms" for taken in row["latency_ms"].values()),
            *(f"{row['fold_error']:.1e}", f"{row['int8']:+.2f}"),
        ]
        for name, row in found.items()
    ]


def draw(found: Mapping[str, Mapping[str, dict[str, Any]]], path: Path) -> None:
    """Draw the accuracy of each block with its spread, and what a step of it costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 2, squeeze=False)
    for (network, rows), (left, right) in zip(found.items(), grid, strict=True):
        names = [*rows]
        left.errorbar(
            [row["mean"] for row in rows.values()],
            names,
            xerr=[row["spread"] for row in rows.values()],
            fmt="o",
            capsize=3,
        )
        left.axvline(rows["plain"]["mean"], color="grey", linewidth=0.8)
        left.set(title=f"{network}: top-1 %, mean and spread of the seeds")
        for shift, form in zip((-0.2, 0.2), EXECUTIONS, strict=True):
            places = [i + shift for i in range(len(names))]
            right.barh(places, [row["step"][form] for row in rows.values()], 0.38, label=form)
        right.set(title="training step, ratio to plain", yticks=range(len(names)))
        right.set_yticklabels(names)
        right.axvline(1, color="black", linewidth=0.5)
        right.legend()
        left.invert_yaxis()
        right.invert_yaxis()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train what is missing, measure, and write the table."""
    parser = argparse.ArgumentParser(description="Compare blocks on Fashion-MNIST.")
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.5, help="of the images, in an epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--blocks", nargs="+", default=BLOCKS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("outputs/results"))
    arguments = parser.parse_args()
    blocks = arguments.blocks = [*dict.fromkeys(("plain", *arguments.blocks))]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # Seeds first: what was trained when this is interrupted is whole tables of fewer seeds.
        sweeps = [(net, seed, arguments) for seed, net in product(arguments.seeds, NETWORKS)]
        for _ in pool.map(train, *zip(*sweeps, strict=True)):
            pass
    torch.set_num_threads(1)
    found = {
        net: {b: accuracy(net, b, arguments) | cost(net, b, arguments.rounds) for b in blocks}
        for net in NETWORKS
    }
    for network, rows in found.items():
        print_table(f"{network}, step and kept bytes as ratios to plain", HEADER, lines(rows))
    text = json.dumps(found, indent=2) + "\n"
    (arguments.output / "results.json").write_text(text, encoding="utf-8")
    draw(found, arguments.output / "results.png")
    print(f"Written: {arguments.output / 'results.json'}, {arguments.output / 'results.png'}")


if __name__ == "__main__":
    main()
