"""A command that is stopped says so with its exit code, says how to go on, and cleans up."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.training.checkpoint import describe

TINY = [
    *("data=synthetic", "data.train_size=64", "data.val_size=20", "data.batch_size=32"),
    *("data.image_size=16", "trainer.accelerator=cpu", "trainer.max_epochs=2", "output=run"),
    *("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"),
]
# Says so when it gets to a place, and waits there for ever.
REACH = """
import sys, time

def reach():
    print("reached", flush=True)
    while True:
        time.sleep(0.01)
"""
TRAIN = """
from repblocks.cli import train
from repblocks.training.seeding import BatchSeed

def on_train_batch_start(self, trainer, *_):
    if trainer.current_epoch == {epoch}:
        reach()

BatchSeed.on_train_batch_start = on_train_batch_start
train.main()
"""
DEPLOY = """
from pathlib import Path
from repblocks.cli import deploy
from repblocks.deployment import pipeline

pipeline.write_config = lambda *_, **__: list(Path().glob(".artifact.*.partial")) and reach()
deploy.main()
"""


def stop(program: str, folder: Path, number: signal.Signals, *arguments: str):
    """Start a command, send it a signal where it waits; gives its code and its last words."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REACH + program, *arguments]
    with subprocess.Popen(command, cwd=folder, text=True, env=environment, **pipes) as process:
        if any(line == "reached\n" for line in process.stdout):
            process.send_signal(number)
        _, error = process.communicate()
    return process.returncode, error


def test_a_run_without_a_checkpoint_leaves_nothing(tmp_path):
    code, error = stop(TRAIN.format(epoch=0), tmp_path, signal.SIGINT, *TINY)
    expected = "Stopped by Ctrl-C.\nThere was no checkpoint yet: start the run anew.\n"
    assert (code, error) == (130, expected)
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_checkpoint_says_how_to_continue(tmp_path):
    code, error = stop(TRAIN.format(epoch=1), tmp_path, signal.SIGTERM, *TINY)
    way = "To continue, give the same command and ckpt_path=run/checkpoints/last.ckpt"
    assert (code, error) == (143, f"Stopped by SIGTERM.\n{way}\n")
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGTERM, (143, "Stopped by SIGTERM.\n")),
        (signal.SIGINT, (130, "Stopped by Ctrl-C.\n")),
    ],
)
def test_a_deployment_leaves_no_part_of_itself(tmp_path, number, message):
    kwargs = {"num_classes": 10, "in_chans": 3}
    network = timm.create_model("repblocks_repvgg_tiny", **kwargs)
    network(torch.randn(2, 3, 16, 16))  # in training mode: BatchNorm gets statistics
    about = describe(
        {"model": {"name": "repblocks_repvgg_tiny", "kwargs": kwargs}, "config": {}},
        preprocessing={"input_size": [3, 16, 16]},
        class_names=tuple("0123456789"),
    )
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    content = {"state_dict": weights, "repblocks": about, "global_step": 1}
    torch.save(content, tmp_path / "x.ckpt")
    arguments = ["ckpt_path=x.ckpt", "formats=[safetensors]"]
    assert stop(DEPLOY, tmp_path, number, *arguments) == message
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
