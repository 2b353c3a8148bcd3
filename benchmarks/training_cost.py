"""What a training step of multi-branch blocks costs, against a plain convolution block.

    uv run benchmarks/training_cost.py [--threads 1] [--only mobileone] [--layout nhwc]
    uv run benchmarks/training_cost.py --networks    # whole networks
    uv run benchmarks/training_cost.py --post-norm   # blocks whose norm comes after the sum
    uv run benchmarks/training_cost.py --sweep       # small inputs: where merging begins to pay
    uv run benchmarks/training_cost.py --device cuda --batch 256 --layout nhwc [--compile]

Each row is one block, or network, timed in turn with its peers in one process: forward, backward
and the update of running statistics; and the bytes that it keeps for the backward pass, the input
and the weights aside. All are ratios to conv-BN-ReLU of the same shape, whose norm uses the
statistics of each batch. ``frozen`` is the block with frozen norms, ``plain frozen`` the plain one
with such; ``no norm`` is convolution, bias and ReLU, less than which frozen norms cannot cost;
``passes`` are those over images that merging leaves, without the arithmetic on weights. On a GPU
all but the parameters is in bfloat16, by autocast. The table is printed, and written as JSON and
PNG into ``--output``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from _interleaved import print_table, time_interleaved
from _training_floor import Step, passes_of, without_norms
from _training_peers import peers_of

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.blocks import ConvBlock, create_block, set_execution
from repblocks.execution import launched_for_free

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
#: Block, images, channels, size, kernel size, options.
BLOCKS: list[tuple[str, int, int, int, int, dict[str, Any]]] = [
    ("mobileone", 16, 64, 56, 1, {}),
    ("mobileone", 16, 128, 28, 1, {}),
    ("mobileone", 32, 256, 14, 1, {}),
    ("mobileone", 32, 64, 56, 3, {"groups": 64}),
    ("mobileone", 32, 192, 28, 3, {"groups": 192}),
    ("mobileone", 64, 256, 14, 3, {"groups": 256}),
    ("mobileone", 32, 192, 28, 3, {"groups": 192, "stride": 2}),
    ("mobileone", 32, 192, 28, 5, {"groups": 192}),
    ("repvgg", 16, 64, 56, 3, {}),
    ("repvgg", 16, 128, 28, 3, {}),
    ("dbb", 16, 64, 56, 3, {}),
    ("dbb", 16, 128, 28, 3, {}),
    ("repvgg_dw", 32, 192, 28, 3, {"groups": 192, "activation": None}),
]
#: Inputs for which the price of merging itself shows.
SWEEP: list[tuple[str, int, int, int, int, dict[str, Any]]] = [
    *(("mobileone", n, c, h, 1, {}) for n, c, h in ((4, 32, 8), (16, 64, 8), (16, 64, 14))),
    *(("mobileone", n, c, h, 1, {}) for n, c, h in ((16, 256, 7), (16, 512, 7), (16, 1024, 5))),
    *(("mobileone", 16, c, h, 3, {"groups": c}) for c, h in ((64, 14), (128, 20), (256, 10))),
    ("mobileone", 16, 128, 40, 3, {"groups": 128, "stride": 2}),
    *(("repvgg", 16, c, h, 3, {}) for c, h in ((48, 32), (96, 16), (192, 8), (512, 7))),
]
#: Blocks that run in weight space before one norm.
POST_NORM: list[tuple[str, int, int, int, int, dict[str, Any]]] = [
    ("repvgg", 16, 64, 56, 3, {"post_norm": True}),
    ("repvgg", 16, 128, 28, 3, {"post_norm": True}),
    ("acb", 16, 64, 56, 3, {"post_norm": True}),
    ("mobileone", 16, 64, 56, 1, {"post_norm": True}),
    ("mobileone", 32, 192, 28, 3, {"post_norm": True, "groups": 192}),
    *((name, 16, 64, 56, 3, {}) for name in ("orepa", "do_conv", "expand_conv", "ecb", "conv3xc")),
    ("orepa", 16, 128, 28, 3, {}),
]
#: By the kind of a table.
SHAPES = {"blocks": BLOCKS, "sweep": SWEEP, "post-norm": POST_NORM}
#: Network, images, size.
NETWORKS = [("mobileone_s0", 16, 160), ("repvgg_a0", 16, 128)]
EXECUTIONS = ("branchwise", "merged", "auto")


def mixed(x: Tensor) -> torch.autocast:
    """Return autocast to the dtype of an input in bfloat16, which does nothing for others."""
    return torch.autocast(x.device.type, x.dtype, enabled=x.dtype is torch.bfloat16)


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a function that runs a model forward and backward."""

    def run() -> Tensor:
        with mixed(x):
            y: Tensor = model(x.detach().requires_grad_())
        return y

    gradient = torch.randn_like(run())

    def step() -> None:
        torch.autograd.backward(run(), gradient)

    return step


class _Saved:
    """A tensor that the graph holds for the backward pass, as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Return what a forward pass keeps for the backward one, the input and the weights aside.

    What a part of the graph held that did not live to the end of the pass does not count; what does
    is all in memory at once, so that no two storages have one address.
    """
    alive: WeakSet[_Saved] = WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        alive.add(saved)
        return saved

    x = x.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor), mixed(x):
        y = model(x)
    storages = [saved.tensor.untyped_storage() for saved in alive]
    kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
    own = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    del y
    return sum(size for place, size in kept.items() if place not in own)


def captured(step: Step) -> Step:
    """Return the kernels of a step on a GPU, without the work of the CPU between them."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(
    models: Mapping[str, nn.Module], x: Tensor, rounds: int, *, replay: bool
) -> dict[str, Any]:
    """Return times and bytes as ratios to ``models["plain"]``, and the time of that in ms."""
    steps: dict[str, Step] = {name: training_step(model, x) for name, model in models.items()}
    block = models.get("merged")
    passes = None
    if isinstance(block, ConvBlock) and not x.is_cuda:
        passes = passes_of(block, x, training_step)
    if passes is not None:
        steps["passes"] = passes
    if replay:
        steps = {name: captured(step) for name, step in steps.items()}
    finish = torch.cuda.synchronize if x.is_cuda else lambda: None
    times = time_interleaved(steps, rounds, 3 if x.is_cuda else 1, finish)
    kept = {name: kept_bytes(model, x) for name, model in models.items()}
    return {
        "plain_ms": times["plain"],
        "time": {name: value / times["plain"] for name, value in times.items()},
        "memory": {name: value / kept["plain"] for name, value in kept.items()},
    }


def plain_of(model: nn.Module) -> nn.Module:
    """Return what all is compared with: convolution, BatchNorm and activation, one by one."""
    set_execution(model, "branchwise")
    return model


def frozen_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose norms are frozen, which runs in weight space."""
    frozen = copy.deepcopy(model)
    for module in frozen.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return frozen


def executions_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return a copy of a model for each execution."""
    models = {name: copy.deepcopy(model) for name in EXECUTIONS}
    for name, twin in models.items():
        set_execution(twin, name)
    return models


def block_models(
    name: str, channels: int, kernel_size: int, **options: Any
) -> dict[str, nn.Module]:
    """Return plain, our executions, the peers, and the block with frozen norms."""
    shape = (channels, channels, kernel_size)
    block = create_block(name, *shape, **options)
    assert isinstance(block, ConvBlock)
    post_norm = options.pop("post_norm", False)
    plain = plain_of(create_block("plain", *shape, **options))
    models = {"plain": plain} | executions_of(block)
    if not post_norm:
        models |= peers_of(block, name)
    return models | frozen_models(block, plain)


def network_models(name: str) -> dict[str, nn.Module]:
    """Return the network of plain blocks, our executions and timm's own."""
    network = timm.create_model(f"repblocks_{name}")
    plain = plain_of(timm.create_model(f"repblocks_{name}", block="plain"))
    models = {"plain": plain} | executions_of(network)
    models["timm byobnet"] = timm.create_model(name)
    return models | frozen_models(network, plain)


def frozen_models(model: nn.Module, plain: nn.Module) -> dict[str, nn.Module]:
    """Return a model with frozen norms, the plain one with such, and the plain one without."""
    return {
        "frozen": frozen_of(model),
        "plain frozen": frozen_of(plain),
        "no norm": without_norms(plain),
    }


@dataclass(frozen=True)
class Case:
    """A row of the table: what is timed, and on what."""

    title: str
    build: Callable[[], dict[str, nn.Module]]
    batch: int
    channels: int
    size: int


def cases(kind: str, images: int | None) -> Iterator[Case]:
    """Give the rows of a table, with so many images or their own number."""
    if kind == "networks":
        for name, own, size in NETWORKS:
            build = partial(network_models, name)
            yield Case(f"{name} {size} px", build, images or own, 3, size)
        return
    for name, own, width, size, k, options in SHAPES[kind]:
        batch = images or own
        norm = "post-norm " if "post_norm" in options else ""
        depthwise = "depthwise " if "groups" in options else ""
        stride = f" /{options['stride']}" if "stride" in options else ""
        title = f"{name} {norm}{depthwise}{k}x{k}{stride}, {batch} x {width} x {size}²"
        build = partial(block_models, name, width, k, **options)
        yield Case(title, build, batch, width, size)


def rows_of(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure everything that was asked for."""
    found: dict[str, dict[str, Any]] = {}
    layout = LAYOUTS[arguments.layout]
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    for case in cases(arguments.kind, arguments.batch):
        if arguments.only in case.title:
            x = torch.randn(case.batch, case.channels, case.size, case.size).relu()
            x = x.to(arguments.device, dtype, memory_format=layout)
            wanted = arguments.columns
            models = {k: m for k, m in case.build().items() if not wanted or k in wanted}
            for model in models.values():
                model.to(x.device).to(memory_format=layout)
            if arguments.compile:
                torch.compiler.reset()
                for model in models.values():
                    model.compile()
            with launched_for_free() if arguments.replay else nullcontext():
                found[case.title] = measure(models, x, arguments.rounds, replay=arguments.replay)
            cells = [f"{name} {_cell(found[case.title], name)}" for name in models]
            print(f"{case.title}: {', '.join(cells)}", flush=True)
    return found


def draw(found: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Draw times and memory as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.9 * len(found)), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("time", "memory"), strict=True):
        names = [*dict.fromkeys(name for row in found.values() for name in row[key])]
        for number, name in enumerate(names):
            places = [i + number / (len(names) + 1) for i in range(len(found))]
            axes.barh(
                places,
                [row[key].get(name, 0) for row in found.values()],
                1 / (len(names) + 1),
                label=name,
            )
        axes.set_yticks([i + 0.4 for i in range(len(found))], [*found])
        axes.set_title(f"{key}, ratio to plain")
        axes.axvline(1, color="black", linewidth=0.5)
    axes.legend()
    figure.savefig(path, dpi=120)


def _cell(row: Mapping[str, Any], name: str) -> str:
    found = [f"{row[key][name]:.2f}" for key in ("time", "memory") if name in row[key]]
    return " / ".join(found)


def counted(text: str) -> int:
    """Return a number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a message if what is asked for is not there."""
    rows = [*cases(arguments.kind, arguments.batch)]
    chosen = [case for case in rows if arguments.only in case.title]
    if not chosen:
        parser.error(f"--only must be part of a row: {'; '.join(case.title for case in rows)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if arguments.replay and arguments.device == "cpu":
        parser.error("--replay needs --device cuda")
    wanted = arguments.columns
    known = dict.fromkeys(name for case in chosen for name in case.build()) if wanted else {}
    if wanted and ("plain" not in wanted or not known.keys() >= {*wanted}):
        parser.error(f"--columns must name plain and others of {', '.join(known)}, got {wanted}")


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=counted, default=1)
    parser.add_argument("--rounds", type=counted, default=7)
    parser.add_argument("--only", default="", help="part of a row's title")
    parser.add_argument("--layout", choices=LAYOUTS, default="nchw")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=counted, help="images, of all rows")
    parser.add_argument("--compile", action="store_true", help="compile all with torch.compile")
    parser.add_argument("--replay", action="store_true", help="what the GPU takes, in a graph")
    parser.add_argument("--columns", nargs="+", help="which to measure; plain must be one")
    for kind in ("networks", "sweep", "post-norm"):
        parser.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind)
    parser.set_defaults(kind="blocks")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    check(parser, arguments)
    torch.set_num_threads(arguments.threads)
    found = rows_of(arguments)
    names = [*dict.fromkeys(name for row in found.values() for name in row["time"])][1:]
    rows = [
        [title, f"{row['plain_ms']:.1f}", *(_cell(row, name) for name in names)]
        for title, row in found.items()
    ]
    is_cpu = arguments.device == "cpu"
    where = f"{arguments.threads} thread(s)" if is_cpu else torch.cuda.get_device_name()
    title = f"Time / memory against plain, {arguments.layout}, {where}"
    print_table(title, ["", "plain, ms", *names], rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    place = "" if is_cpu else "_cuda"
    place += "_compiled" * arguments.compile + "_replayed" * arguments.replay
    stem = f"training_cost_{arguments.kind}_{arguments.layout}{place}"
    (arguments.output / f"{stem}.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(found, arguments.output / f"{stem}.png")
    print(f"Written: {arguments.output / stem}.json, .png")


if __name__ == "__main__":
    main()
