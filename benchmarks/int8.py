"""Accuracy in float32 and in INT8, of runs of train.py.

    uv run benchmarks/int8.py RUN [RUN ...] [--data FOLDER] [--images 512] [--all]

RUN is the folder of a run, for example ``outputs/results/repvgg_tiny-repvgg-0`` of
``benchmarks/results.py``, or a checkpoint. Each is folded and quantized for ONNX Runtime, and for
OpenVINO where NNCF is installed: by the quantizer alone, and as ``quantization=default`` does it.
``--all`` tells its parts apart. Each form is written, loaded back and run on all validation images.
The table is in per cent, for INT8 as the difference from float32 in points.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from _interleaved import print_table

from repblocks.cli.folders import newest_run_checkpoint
from repblocks.cli.recorded_data import build_recorded_data
from repblocks.data import ImageDataModule
from repblocks.deployment.accuracy import Agreement, compare_predictions
from repblocks.deployment.formats import Export, get_format
from repblocks.deployment.load import build
from repblocks.deployment.network import fold_network
from repblocks.deployment.quantization import QuantizationConfig
from repblocks.deployment.quantization.calibration import calibration_batches
from repblocks.deployment.quantization.friendliness import measure_friendliness
from repblocks.deployment.written import written
from repblocks.training.checkpoint import Checkpoint, load_weights, read_checkpoint

Scheme = dict[str, bool | str]
SCHEMES: dict[str, Scheme] = {
    "plain": {"equalize": "none", "correct_bias": False},
    "default": {},
}
PARTS: dict[str, Scheme] = {
    "plain, 8 bits": {"equalize": "none", "correct_bias": False, "half_range": False},
    "weights": {"equalize": "weights", "correct_bias": False},
    "activations": {"equalize": "activations", "correct_bias": False},
    "bias": {"equalize": "none"},
    "weights, bias": {"equalize": "weights"},
    "default, 8 bits": {"half_range": False},
}


def checkpoint_of(path: Path) -> Checkpoint:
    """Read a checkpoint, or the best one of a run."""
    return read_checkpoint(path if path.is_file() else newest_run_checkpoint(path))


def data_of(checkpoint: Checkpoint, root: str | None) -> ImageDataModule:
    """Build the data of a run, where it is here."""
    data = build_recorded_data(checkpoint.config["data"], {"root": root} if root else {})
    data.setup("validate")
    return data


def measure(
    path: Path, schemes: dict[str, Scheme], arguments: argparse.Namespace
) -> Iterator[tuple[str, str, Agreement, float]]:
    """Quantize one run in each format and scheme.

    Yields:
        Format, scheme, the accuracies, and the largest outlier ratio of a kernel.
    """
    checkpoint = checkpoint_of(path)
    data = data_of(checkpoint, arguments.data)
    model = build(checkpoint.model_name, checkpoint.model_kwargs, checkpoint.path)
    load_weights(model, checkpoint.state_dict, new_head=False)
    images = calibration_batches(data, QuantizationConfig(images=arguments.images))
    folded = fold_network(
        model.eval(), checkpoint.model_name, checkpoint.model_kwargs, images[0][:8]
    ).model
    outliers = max(
        layer.outlier_ratio for layer in measure_friendliness(folded, images[:1], half_range=True)
    )
    batches: list[tuple[Tensor, Tensor]] = list(data.val_dataloader())
    for form in map(get_format, arguments.formats):
        for name, options in schemes.items():
            config = QuantizationConfig(images=arguments.images, **options)  # type: ignore[arg-type] # by name
            with tempfile.TemporaryDirectory() as folder:
                export = Export(folded, images[0][:3], Path(folder), images, quantization=config)
                run = written(form, export)
                found = run and compare_predictions(folded, run, batches)
            if found is None:
                raise SystemExit(f"{path}: there are no validation images.")
            print(path.name, form.name, name, found, file=sys.stderr, flush=True)
            yield form.name, name, found, outliers


def main() -> None:
    """Quantize the runs and print the table."""
    here = ["onnx_int8", *(["openvino_int8"] if find_spec("nncf") else [])]
    parser = argparse.ArgumentParser(description="Compare INT8 with float32.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data", metavar="FOLDER", help="in the place of the recorded data.root")
    parser.add_argument("--images", type=int, default=512, help="to measure ranges on")
    parser.add_argument("--all", action="store_true", help="each part of the default by itself")
    parser.add_argument("--formats", nargs="+", default=here)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    schemes = SCHEMES | (PARTS if arguments.all else {})
    rows, records = [], []
    for path in arguments.runs:
        found = list(measure(path, schemes, arguments))
        _, _, first, outliers = found[0]
        changes = [100 * (one.deployed_top1 - one.training_top1) for _, _, one, _ in found]
        shown = (f"{change:+.2f}" for change in changes)
        rows.append([path.name, f"{100 * first.training_top1:.2f}", f"{outliers:.0f}", *shown])
        records += [
            {"run": path.name, "format": form, "scheme": scheme, "float32": one.training_top1}
            | {"int8": one.deployed_top1, "differing": one.num_differing, "outliers": outliers}
            for form, scheme, one, outliers in found
        ]
    header = [f"{form}: {scheme}" for form in arguments.formats for scheme in schemes]
    print_table("top-1", ["run", "float32", "outlier ratio", *header], rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
