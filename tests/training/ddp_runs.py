"""Two real processes with gloo, forked; test_training_ddp.py runs this in a fresh process."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import tiny_config, tiny_data, tiny_train
from torch import nn
from torch.nn import functional

from repblocks.training import OptimizerConfig, read_checkpoint

TWO = {"strategy": "ddp_fork", "devices": 2}


class Dump(pl.Callback):
    """Write the batches of each process, the weights before and the gradients of one update."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, trainer, module, batch, _batch_idx):
        seen = {"batch": batch, "weights": module.model.state_dict()}
        torch.save(seen, self.folder / f"start{trainer.global_rank}.pt")

    def on_before_optimizer_step(self, trainer, module, _optimizer):
        gradients = {name: value.grad for name, value in module.model.named_parameters()}
        torch.save(gradients, self.folder / f"gradients{trainer.global_rank}.pt")


def deterministic_model():
    pl.seed_everything(3, verbose=False)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4)
    )


def test_gradients_are_the_mean_over_the_processes_with_own_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_runs.tiny_model", deterministic_model)
    tiny_train(
        tmp_path / "run",
        data=tiny_data(train_size=16),
        callbacks=[Dump(tmp_path)],
        precision="64-true",
        **TWO,
    )
    starts = [torch.load(tmp_path / f"start{rank}.pt") for rank in range(2)]
    model = deterministic_model().double()
    model.load_state_dict(starts[0]["weights"])
    halves = []
    for start in starts:
        images, targets = start["batch"]
        assert images.dtype == torch.float64
        half = copy.deepcopy(model)
        functional.cross_entropy(half(images), targets).backward()
        halves.append({name: value.grad for name, value in half.named_parameters()})
    assert not torch.equal(starts[0]["batch"][0], starts[1]["batch"][0])
    for rank in range(2):
        got = torch.load(tmp_path / f"gradients{rank}.pt")
        for name, gradient in got.items():
            expected = (halves[0][name] + halves[1][name]) / 2
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
            assert (
                not torch.allclose(halves[0][name], halves[1][name], rtol=1e-3) or name == "0.bias"
            )


class PoisonOneProcess(pl.Callback):
    """A NaN that only the second process sees; the first one compares its weights."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = [value.clone() for value in module.model.state_dict().values()]
        if batch_idx == 3 and trainer.global_rank == 1:
            batch[0][0, 0, 5, 5] = float("nan")

    def on_train_batch_end(self, trainer, module, _outputs, _batch, batch_idx):
        after = module.model.state_dict().values()
        is_same = all(map(torch.equal, self.before, after))
        assert is_same == (batch_idx == 3), (trainer.global_rank, batch_idx)


def test_processes_leave_out_the_same_update(tmp_path):
    tiny_train(tmp_path, callbacks=[PoisonOneProcess()], **TWO)
    weights = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").state_dict
    assert all(value.isfinite().all() for value in weights.values())


class Rates(pl.Callback):
    def on_train_end(self, trainer, _module):
        if trainer.is_global_zero:
            initial = trainer.optimizers[0].param_groups[0]["initial_lr"]
            torch.save(initial, trainer.default_root_dir + "/lr")


def test_run_of_two_processes_writes_one_set_of_files(tmp_path):
    config = tiny_config(
        ema_decay=0.9,
        checkpoint_every_n_steps=2,
        optimizer=OptimizerConfig(lr=0.1, base_batch_size=32),
    )
    tiny_train(tmp_path, config, data=tiny_data(val_size=15), callbacks=[Rates()], **TWO)
    assert torch.load(tmp_path / "lr") == pytest.approx(0.1 * 8 * 2 / 32)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *"1234566"]
    accuracy = float(rows[-1].split(",")[5])
    assert accuracy * 15 == pytest.approx(round(accuracy * 15), abs=1e-5), "each image counts once"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "step_2.ckpt", "step_4.ckpt"]
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").raw["global_step"] == 6
