"""Time our folded networks beside timm's reparameterized ones, in each runtime, on one thread.

    uv run benchmarks/runtimes.py [NAME ...] [--seconds 20] [--int8]

Names are those of timm, images are 1 x 3 x 224 x 224. timm's network is
``timm.utils.reparameterize_model``; ours is ``fold`` of the same network, with the same weights.
All forms are run in turn, in one process. Numbers are ratios: to timm's in eager mode, and, within
each runtime, of ours to timm's; of ours in 8 bits, to ours in 32. Forms that are not the same
function as the network are marked.
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
from repblocks.deployment.runtimes import (
    Contender,
    file_contender,
    open_onnx,
    open_openvino,
    torch_contenders,
)
from repblocks.errors import RepblocksError
from repblocks.expansion import recalibrate_bn
from repblocks.folding.reference import Reference

NAMES = ["repvgg_a0", "mobileone_s0", "repvit_m0_9"]
HEADER = ["network", "runtime", "timm's, ms", "ours, ms"]
HEADER += ["ours to timm's eager", "to timm's here", "8 bits to 32"]


def main() -> None:
    """Time the networks and print the table."""
    parser = argparse.ArgumentParser(description="Time folded networks in each runtime.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network")
    parser.add_argument("--int8", action="store_true", help="ours in 8 bits, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.names or NAMES:
        rows += compare(name, arguments.seconds, int8=arguments.int8)
    print_table("Folded networks, one image of 224 px, one thread", HEADER, rows)


def compare(name: str, seconds: float, *, int8: bool) -> list[list[str]]:
    """Time one network."""
    torch.manual_seed(0)
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    recalibrate_bn(model, [torch.randn(4, 3, 224, 224)])
    both = {"timm's": reparameterize_model(model).eval(), "ours": fold(model, x).eval()}
    with tempfile.TemporaryDirectory() as folder:
        found = [
            one
            for whose, network in both.items()
            for one in contenders(whose, network, Path(folder) / whose, x)
        ]
        if int8:
            found += quantized_contenders(both["ours"], Path(folder) / "ours", x)
        taken = timed(found, Reference(model, x, torch.float32), seconds)
    eager = taken["timm's/PyTorch"]
    runtimes = dict.fromkeys(one.runtime for one in found)
    return [row(name, runtime, taken, eager) for runtime in runtimes]


@torch.inference_mode()
def timed(found: list[Contender], reference: Reference, seconds: float) -> dict[str, float]:
    """Give the median of each form in each runtime, in ms."""
    opened = {(one.form, one.runtime): checked(one, reference) for one in found}
    # Neighbours in turn are those that are compared.
    order = sorted((key for key, run in opened.items() if run is not None), key=lambda key: key[1])
    calls = {"/".join(key): caller(opened[key], reference.inputs[0]) for key in order}
    return {key: median(values) for key, values in time_in_turn(calls, seconds).items()}


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


def quantized_contenders(model: nn.Module, folder: Path, x: Tensor) -> list[Contender]:
    """Give ours in 8 bits in each runtime."""
    images = [torch.randn(4, 3, 224, 224) for _ in range(4)]
    export = Export(model, x.repeat(2, 1, 1, 1), folder, images)
    found = []
    for name in ("onnx_int8", "openvino_int8"):
        get_format(name).write(export)
        one = file_contender(get_format(name), folder, model)
        found.append(replace(one, form="ours in 8 bits"))
    return found


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
    forms = ("timm's", "ours", "ours in 8 bits")
    theirs, ours, small = (taken.get(f"{form}/{runtime}") for form in forms)
    if theirs is None or ours is None:
        return [name, runtime, *[""] * (len(HEADER) - 2)]
    in_8_bits = "" if small is None else f"{small / ours:.2f}"
    ratios = (f"{ours / eager:.2f}", f"{ours / theirs:.2f}", in_8_bits)
    return [name, runtime, f"{theirs:.1f}", f"{ours:.1f}", *ratios]


if __name__ == "__main__":
    main()
