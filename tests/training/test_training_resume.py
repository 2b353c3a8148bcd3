import multiprocessing
import os
import shutil
import signal

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import random_run

# A fork is a process of its own that need not import everything again.
PROCESS = multiprocessing.get_context("fork").Process


class KillAfter(pl.Callback):
    """Die as from ``kill -9``: nothing is flushed, closed or written."""

    def __init__(self, updates):
        self.updates = updates

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.updates:
            os.kill(os.getpid(), signal.SIGKILL)


def run_process(output, **options):
    process = PROCESS(target=random_run, args=(output,), kwargs=options)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run_process(folder, workers=2) == 0
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of 4 epochs of 6 updates, killed in epoch 2 between the checkpoints 8 and 10."""
    folder = tmp_path_factory.mktemp("killed")
    assert run_process(folder, workers=2, callbacks=[KillAfter(9)]) == -signal.SIGKILL
    # None at 6, the end of epoch 1: a validation follows it.
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "step_4.ckpt", "step_8.ckpt"]
    return folder


@pytest.mark.parametrize(
    ("name", "workers"), [("step_8.ckpt", 2), ("last.ckpt", 0), ("best.ckpt", 0)]
)
def test_killed_and_resumed_run_ends_bit_identical(tmp_path, whole, killed, name, workers):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 9 + 1, "the header, 9 updates, 1 validation"

    checkpoint = folder / "checkpoints" / name
    content = checkpoint.read_bytes()
    assert run_process(folder, workers=workers, ckpt_path=checkpoint) == 0

    if name == "step_8.ckpt":
        assert checkpoint.read_bytes() == content, "not written again in the middle of update 9"

    expected, got = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, folder)
    )
    assert expected["global_step"] == got["global_step"] == 24
    names = list(expected["state_dict"])
    assert "model.0.weight" in names
    assert "ema.module.1.norm.running_var" in names
    for entry in names:
        assert torch.equal(expected["state_dict"][entry], got["state_dict"][entry]), entry
    metrics = (folder / "metrics.csv").read_bytes()
    assert metrics == (whole / "metrics.csv").read_bytes()
    assert len(metrics.splitlines()) == 1 + 24 + 4
