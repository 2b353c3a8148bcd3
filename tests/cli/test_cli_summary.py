"""A sweep ends with its table, also if a run failed; a sweep without a run leaves nothing."""

import csv
import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from repblocks.cli.summary import Summary

# One run stands for each; only the second one is possible.
PROGRAM = """
import json
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from repblocks.cli.launching import launch
from repblocks.errors import ConfigurationError

def run(config):
    if config.seed == 1:
        raise ConfigurationError("seed must not be 1.")
    row = {"overrides": f"seed={config.seed}", "accuracy": 0.5, "train_seconds": 1.0}
    Path(HydraConfig.get().runtime.output_dir, "summary.json").write_text(json.dumps(row))

launch("train", run)
"""


def sweep(folder, *arguments):
    command = [sys.executable, "-c", PROGRAM, "-m", "hydra.sweep.dir=sweep", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_failed_run_is_marked_in_the_table(tmp_path):
    done = sweep(tmp_path, "seed=1,2")
    assert done.returncode == 2
    assert "Run 0 failed: seed must not be 1." in done.stdout
    assert done.stderr == "1 of 2 runs failed.\n"
    cells = [[text.strip() for text in line.split("│")[1:4]] for line in done.stdout.splitlines()]
    assert ["0", "seed=1", "failed"] in cells
    assert ["1", "seed=2", "0.5"] in cells
    with (tmp_path / "sweep/summary.csv").open() as file:
        rows = [(row["accuracy"], row["error"]) for row in csv.DictReader(file)]
    assert rows == [("", "seed must not be 1."), ("0.5", "")]
    assert json.loads((tmp_path / "sweep/0/summary.json").read_text())["overrides"] == "seed=1"


@pytest.mark.parametrize("columns", ["40", "80"])
def test_runs_can_be_told_apart_in_a_narrow_terminal(tmp_path, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    values = ("0.0009765625", "0.0009765626")
    for number, value in enumerate(values):
        (tmp_path / str(number)).mkdir()
        row = {"overrides": f"seed=1 optimizer.weight_decay={value}", "accuracy": 0.5}
        (tmp_path / str(number) / "summary.json").write_text(json.dumps(row))
    Summary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    lines = capsys.readouterr().out.splitlines()
    text = "".join(line.split("│")[2].strip() for line in lines if "│" in line)
    assert text == "".join(f"optimizer.weight_decay={value}" for value in values)


def test_a_sweep_without_failures_succeeds(tmp_path):
    done = sweep(tmp_path, "seed=2,3")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sweep_that_cannot_be_composed_leaves_nothing(tmp_path):
    done = sweep(tmp_path, "block=plain,repvg")
    assert done.returncode == 2
    assert done.stderr.startswith("Unknown block 'repvg'. Did you mean 'repvgg'?")
    assert list(tmp_path.iterdir()) == []


def test_one_output_for_all_runs_is_refused_before_the_first(tmp_path):
    done = sweep(tmp_path, "seed=2,3", "output=x=y")
    message = (
        "output=x=y would be the folder of every run of the sweep, and holds one. Leave output out,"
        " and set hydra.sweep.dir=x=y to have the folders of the runs in it.\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outputs", ["output=a,b", "output=run_${seed}"])
def test_an_output_for_each_run_is_taken(tmp_path, outputs):
    done = sweep(tmp_path, "seed=2,3", outputs)
    assert (done.returncode, done.stderr) == (0, "")
