"""Time our folded networks beside timm's reparameterized ones, in each runtime, on one thread.

    uv run benchmarks/runtimes.py [NAME ...] [--seconds 20]

Names are those of timm, images are 1 x 3 x 224 x 224. timm's network is
``timm.utils.reparameterize_model``; ours is ``fold`` of the same network, with the same weights.
All forms are run in turn, in one process. Numbers are ratios: to timm's in eager mode, and, within
each runtime, of ours to timm's. Forms that are not the same function as the network are marked.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import timm
import torch
from _interleaved import print_table
from timm.utils import reparameterize_model
from torch import Tensor, nn

from repblocks import fold
from repblocks.deployment.formats import Export, Run, get_format
from repblocks.deployment.latency import time_in_turn
from repblocks.deployment.runtimes import Contender, open_onnx, open_openvino, torch_contenders
from repblocks.errors import RepblocksError
from repblocks.expansion import recalibrate_bn
from repblocks.folding.reference import Reference

NAMES = ["repvgg_a0", "mobileone_s0", "repvit_m0_9"]
HEADER = ("network", "runtime", "timm's, ms", "ours, ms", "ours to timm's eager", "to timm's here")


def main() -> None:
    """Time the networks and print the table."""
    parser = argparse.ArgumentParser(description="Time folded networks in each runtime.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.names or NAMES:
        rows += compare(name, arguments.seconds)
    print_table("Folded networks, one image of 224 px, one thread", HEADER, rows)


def compare(name: str, seconds: float) -> list[list[str]]:
    """Time one network."""
    torch.manual_seed(0)
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    recalibrate_bn(model, [torch.randn(4, 3, 224, 224)])
    both = {"timm's": reparameterize_model(model), "ours": fold(model, x)}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        opened = {
            (whose, one.runtime): checked(one, Reference(model, x, torch.float32))
            for whose, network in both.items()
            for one in contenders(whose, network.eval(), Path(folder) / whose, x)
        }
        # Neighbours in turn are those that are compared.
        order = sorted(
            (key for key, run in opened.items() if run is not None), key=lambda key: key[1]
        )
        calls = {"/".join(key): caller(opened[key], x) for key in order}
        taken = {key: median(values) for key, values in time_in_turn(calls, seconds).items()}
    eager = taken["timm's/PyTorch"]
    runtimes = dict.fromkeys(runtime for _, runtime in opened)
    return [row(name, runtime, taken, eager) for runtime in runtimes]


def contenders(whose: str, model: nn.Module, folder: Path, x: Tensor) -> list[Contender]:
    """Give one network in each runtime."""
    folder.mkdir()
    get_format("onnx").write(Export(model, x.repeat(2, 1, 1, 1), folder))
    path = folder / "model.onnx"
    files = [
        Contender(whose, "ONNX Runtime", lambda threads: open_onnx(path, threads)),
        Contender(whose, "OpenVINO", lambda threads: open_openvino(path, threads)),
    ]
    return [*(replace(one, form=whose) for one in torch_contenders(whose, model)), *files]


def checked(contender: Contender, reference: Reference) -> Run | None:
    """Open a form, if its runtime is here and it is the same function."""
    try:
        run = contender.open(1)
        found = reference.compare_output(run(*reference.inputs))
    except (ImportError, RepblocksError) as error:
        print(f"{contender.form} in {contender.runtime}: {error}")
        return None
    if not found.passed:
        print(f"{contender.form} in {contender.runtime} is another function: {found.rms_rel:.1e}")
    return run


def caller(run: Run | None, x: Tensor) -> Callable[[], object]:
    """Give what is timed."""
    assert run is not None
    return lambda: run(x)


def row(name: str, runtime: str, taken: dict[str, float], eager: float) -> list[str]:
    """Lay out one runtime."""
    theirs, ours = taken.get(f"timm's/{runtime}"), taken.get(f"ours/{runtime}")
    if theirs is None or ours is None:
        return [name, runtime, "", "", "", ""]
    ratios = (f"{ours / eager:.2f}", f"{ours / theirs:.2f}")
    return [name, runtime, f"{theirs:.1f}", f"{ours:.1f}", *ratios]


if __name__ == "__main__":
    main()
