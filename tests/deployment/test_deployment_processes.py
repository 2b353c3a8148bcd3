"""The real command: the same bytes from the same checkpoint, and nothing left on a full disk."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from deployment.onnx_graphs import Graph, repvgg_unit
from deployment_nets import write_checkpoint
from torch import nn

from repblocks.deployment.from_checkpoint import deploy_checkpoint
from repblocks.deployment.manifest import read_manifest
from repblocks.deployment.onnx_fold import fold_onnx
from repblocks.errors import RepblocksError

ROOT = Path(__file__).parents[2]
MODEL = {"name": "repblocks_repvgg_tiny", "kwargs": {"num_classes": 7, "in_chans": 3}}
CONFIG = {"seed": 3, "optimizer": {"lr": 0.1}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(MODEL["name"], **MODEL["kwargs"])
    for _ in range(5):
        model(torch.randn(8, 3, 12, 12))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= torch.rand_like(module.running_var) + 0.5
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    return write_checkpoint(path, model, model=MODEL, config=CONFIG, git_commit="abc")


def start(checkpoint: Path, output: Path, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "deploy.py", f"ckpt_path={checkpoint}", f"output={output}"],
        cwd=output.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def twice(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two artifacts of one checkpoint, from processes with other hash seeds in other folders."""
    outputs = [tmp_path_factory.mktemp(f"with{seed}") / f"artifact{seed}" for seed in (1, 2)]
    running = [start(checkpoint, output, seed) for seed, output in enumerate(outputs, 1)]
    for one in running:
        out, err = one.communicate()
        assert one.returncode == 0, out + err
    return outputs


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.onnx"])
def test_the_bytes_are_the_same(twice: list[Path], name: str) -> None:
    first, second = ((folder / name).read_bytes() for folder in twice)
    assert first == second


def test_the_reports_are_the_same_but_for_what_was_measured(twice: list[Path]) -> None:
    first, second = (json.loads((folder / "report.json").read_text("utf-8")) for folder in twice)
    assert first.pop("measured")["latency_ms"]
    assert second.pop("measured")
    assert first == second
    assert list(first) == list(second)


def test_the_programs_are_the_same(twice: list[Path]) -> None:
    first, second = (torch.export.load(folder / "model.pt2") for folder in twice)
    assert first.graph_module.code == second.graph_module.code
    assert str(first.graph) == str(second.graph)
    assert first.state_dict.keys() == second.state_dict.keys()
    assert first.state_dict
    for name, weight in first.state_dict.items():
        assert torch.equal(weight, second.state_dict[name])


def test_the_manifest_knows_the_run(twice: list[Path]) -> None:
    content = json.loads((twice[0] / "manifest.json").read_text("utf-8"))
    assert content["run"] == {"config": CONFIG, "versions": {}, "git_commit": "abc"}
    deployment = content["deployment"]
    assert deployment["formats"] == ["safetensors", "onnx", "pt2"]
    assert deployment["quantization"]["largest_drop"] == 0.5
    assert deployment["output"] == str(twice[0])
    first, second = map(read_manifest, twice)
    assert {name for name in first if first[name] != second[name]} <= {
        *("report.json", "report.md", "report.html", "model.pt2")
    }


def test_who_reads_one_file_reads_all(twice: list[Path]) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in twice[0].iterdir()}
    assert set(modes.values()) == {modes["config.json"]}


def limit_file_size(size: int) -> None:
    """Let writes past this size fail, as on a full disk; Python ignores the signal."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# The limit begins when everything is loaded: caches of other packages are not the subject.
FULL_DISK = """
import resource, sys
import repblocks.cli.deployment_run
from repblocks.cli.deploy import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
main()
"""


def test_a_full_disk_leaves_nothing_of_the_command(checkpoint: Path, tmp_path: Path) -> None:
    options = [f"ckpt_path={checkpoint}", "output=artifact", "formats=[safetensors]"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("model.safetensors could not be written: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["safetensors", "onnx", "pt2"])
def test_a_full_disk_keeps_the_old_artifact(checkpoint: Path, twice: list[Path], form: str) -> None:
    output = twice[0]
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    limit_file_size(4096)
    try:
        with pytest.raises(ValueError, match=f"model.{form} could not be written"):
            deploy_checkpoint(checkpoint, output, formats=[form])
    finally:
        limit_file_size(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize(("size", "file"), [(512, "model.onnx"), (2048, "report.json")])
def test_a_full_disk_is_told_of_an_onnx_file_as_of_a_checkpoint(
    tmp_path: Path, size: int, file: str
) -> None:
    graph = Graph()
    graph.output(repvgg_unit(graph, graph.input("N", 4, 6, 6), 4))
    source = graph.save(tmp_path / "source.onnx")
    limit_file_size(size)
    try:
        with pytest.raises(RepblocksError, match=rf"^{file} could not be written: \[Errno 27\]"):
            fold_onnx(source, tmp_path / "out")
    finally:
        limit_file_size(resource.RLIM_INFINITY)
    assert list(tmp_path.iterdir()) == [source]
