"""The commands as users run them: real processes, from nothing to a network that runs."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import repblocks

ROOT = Path(__file__).parents[2]
TINY = [
    *("data=synthetic", "data.train_size=64", "data.val_size=20", "data.batch_size=32"),
    *("data.image_size=16", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"),
    *("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"),
]


def run(folder: Path, *command: str, code: int = 0, **environment: str):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train for an epoch in an empty folder; gives the folder of the run and what was printed."""
    folder = tmp_path_factory.mktemp("train")
    arguments = [*TINY, "trainer.max_epochs=1", "ema_decay=0.9", "block=acb"]
    printed = run(folder, str(ROOT / "train.py"), *arguments)
    (output,) = (folder / "outputs/train").glob("repvgg_tiny-acb/*")
    return output, printed


def test_train_writes_a_run_and_says_what_is_next(trained):
    output, printed = trained
    assert {path.name for path in output.iterdir()} == {
        *("artifact", "checkpoints", "config.yaml", "curves.png", "metrics.csv", "summary.json")
    }
    names = {path.name for path in (output / "artifact").iterdir()}
    assert {"model.safetensors", "model.onnx", "model.pt2", "config.json", "report.md"} <= names
    artifact = output.relative_to(output.parents[3]) / "artifact"
    assert f'repblocks.load("{artifact}")' in " ".join(printed.split())
    assert "The predicted class differs for 0 of 20 validation images" in printed


def test_deploy_works_from_the_checkpoint_alone(trained, tmp_path):
    output, _ = trained
    shutil.copy(output / "checkpoints/best.ckpt", tmp_path / "net.ckpt")
    overrides = ["ckpt_path=net.ckpt", "output=x/art", "formats=[safetensors]", "data.val_size=30"]
    printed = run(tmp_path, str(ROOT / "deploy.py"), *overrides)
    assert "Deploying net.ckpt" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"net.ckpt", "x"}
    report = json.loads((tmp_path / "x/art/report.json").read_text())
    assert report["agreement"]["num_images"] == 30
    images = torch.randn(2, 3, 16, 16)
    deployed, other = repblocks.load(tmp_path / "x/art"), repblocks.load(output / "artifact")
    assert torch.equal(deployed(images), other(images))


def test_a_run_is_continued_in_its_folder_and_can_be_validated(trained, tmp_path):
    output, _ = trained
    run_folder = tmp_path / "run"
    shutil.copytree(output, run_folder)
    ckpt = "ckpt_path=run/checkpoints/last.ckpt"
    arguments = [*TINY, "trainer.max_epochs=2", "ema_decay=0.9", "block=acb", "deploy=false"]
    printed = run(tmp_path, str(ROOT / "train.py"), *arguments, ckpt)
    assert "other settings than before: deploy True -> False; trainer.max_epochs 1 -> 2." in printed
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with (run_folder / "metrics.csv").open() as file:
        rows = [(row["step"], row["epoch"]) for row in csv.DictReader(file) if row["train_loss"]]
    assert rows == [("1", "0"), ("2", "0"), ("3", "1"), ("4", "1")]
    printed = run(tmp_path, str(ROOT / "train.py"), "mode=validate", ckpt)
    assert re.search(r"20 images", printed)
    assert re.search(r"class_9 .*%", printed)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_sweep_ends_with_one_table(tmp_path):
    arguments = [*TINY, "trainer.max_epochs=1", "export=weights", "hydra.sweep.dir=sweep"]
    printed = run(tmp_path, str(ROOT / "train.py"), "-m", "block=plain,repvgg", *arguments)
    with (tmp_path / "sweep/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["overrides"].split()[0] for row in rows] == ["block=plain", "block=repvgg"]
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 1
        assert int(row["deployed_bytes"]) > 0
        assert min(float(row["train_seconds"]), float(row["latency_ms"])) > 0
    table = printed[printed.rindex("overrides") :]
    assert "block=plain" in table
    assert "data=synthetic" not in table


def test_the_wheel_brings_its_configs_and_runs_a_saved_one_again(trained, tmp_path):
    uv = shutil.which("uv") or "uv"
    install = [uv, "pip", "install", "--offline", "--no-deps", "--python", sys.executable]
    build = [uv, "build", "--wheel", "--offline", "-o", "dist", str(ROOT)]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([*install, "--target", "new", wheel], cwd=tmp_path, check=True)
    path = {"PYTHONPATH": str(tmp_path / "new")}
    train, deploy = (str(tmp_path / f"new/bin/repblocks-{name}") for name in ("train", "deploy"))
    empty = tmp_path / "empty"
    empty.mkdir()
    printed = run(empty, train, "--info", "config", **path)
    assert f"{tmp_path}/new/repblocks/configs" in "".join(printed.split())
    again = ["--config-dir", str(trained[0]), "--config-name", "config", "deploy=false"]
    run(empty, train, *again, "output=again", **path)
    first, second = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (trained[0], empty / "again")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    printed = run(empty, deploy, "--cfg", "job", **path)
    assert "deploy_shortcut: null" in printed
