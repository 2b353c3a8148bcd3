"""A folder belongs to one run, and a run that came to nothing leaves nothing in it."""

import subprocess
import sys

import pytest
import pytorch_lightning as pl
from tiny_runs import tiny_config, tiny_data, tiny_train

from repblocks.errors import ConfigurationError, NonFiniteLossError
from repblocks.training import OptimizerConfig
from repblocks.training.claiming import claimed


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two folders, each with a run of its own."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        tiny_train(folder / name, data=tiny_data(train_size=16))
    return folder


def content(folder):
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


def test_a_run_is_not_continued_over_another_one(runs):
    before = content(runs)
    last = runs / "a/checkpoints/last.ckpt"
    message = (
        rf"b already holds another run than that of {last}\. Nothing was changed\. Choose another "
        rf"folder, or continue the run with ckpt_path={runs}/b/checkpoints/last\.ckpt\."
    )
    with pytest.raises(ConfigurationError, match=message):
        tiny_train(runs / "b", ckpt_path=last, max_epochs=2)
    assert content(runs) == before


def test_a_folder_of_metrics_alone_holds_a_run_too(tmp_path):
    (tmp_path / "metrics.csv").write_text("step\n")
    with pytest.raises(ConfigurationError, match=r"or remove it, it has no checkpoint"):
        tiny_train(tmp_path)


# Holds a folder until its input ends.
HOLD = """
import sys
from pathlib import Path
from repblocks.training.claiming import claimed

with claimed(Path(sys.argv[1]), None):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigurationError, match=r"Another process is writing a run into"),
            claimed(tmp_path, None),
        ):
            pass
    with claimed(tmp_path, None):  # it has ended
        pass


def fail_at_once(output, **config):
    optimizer = OptimizerConfig(lr=1e30, base_batch_size=8)
    with pytest.raises(NonFiniteLossError):
        tiny_train(output, tiny_config(non_finite_patience=1, optimizer=optimizer, **config))


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(tmp_path):
    fail_at_once(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    fail_at_once(tmp_path / "empty")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_what_was_in_the_folder_before_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    fail_at_once(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


class FailLate(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 3:
            raise OSError("gone")


def test_a_run_that_fails_after_a_checkpoint_keeps_everything(tmp_path):
    config = tiny_config(checkpoint_every_n_steps=1)
    with pytest.raises(OSError, match="gone"):
        tiny_train(tmp_path, config, callbacks=[FailLate()])
    assert (tmp_path / "metrics.csv").exists()
    assert list((tmp_path / "checkpoints").iterdir())
