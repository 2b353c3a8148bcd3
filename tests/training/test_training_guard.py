import logging

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import tiny_config, tiny_train

from repblocks.errors import NonFiniteLossError
from repblocks.training import newest_checkpoint, read_checkpoint


class Poison(pl.Callback):
    """Put a NaN into an image of some batches, and remember all states after each batch."""

    def __init__(self, *batches):
        self.batches = batches
        self.states = []

    def on_train_batch_start(self, _trainer, _module, batch, batch_idx):
        if batch_idx in self.batches:
            batch[0][0, 0, 5, 5] = float("nan")

    def on_train_batch_end(self, trainer, module, *_):
        slots = trainer.optimizers[0].state.values()
        momentum = [slot["momentum_buffer"] for slot in slots if "momentum_buffer" in slot]
        self.states.append(
            [value.clone() for value in [*module.model.state_dict().values(), *momentum]]
        )


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_single_broken_batch_changes_nothing(tmp_path, caplog, accumulate):
    """Neither weights, nor momentum, nor the statistics of BatchNorm; training goes on."""
    poison = Poison(4)
    with caplog.at_level(logging.WARNING):
        tiny_train(tmp_path, callbacks=[poison], accumulate_grad_batches=accumulate)
    before, after = poison.states[3], poison.states[4 + accumulate - 1]
    assert same(before, after)
    assert not same(after, poison.states[-1])
    assert all(value.isfinite().all() for value in poison.states[-1])
    assert f"Update {4 // accumulate + 1} is left out" in caplog.text
    assert "(1 in a row)" in caplog.text


def test_too_many_in_a_row_stop_the_run_and_keep_a_finite_checkpoint(tmp_path):
    poison = Poison(2, 5, 7, 8, 9)  # single ones are forgotten
    config = tiny_config(checkpoint_every_n_steps=1, ema_decay=0.9)
    with pytest.raises(NonFiniteLossError, match=r"in 3 updates in a row, .* epoch 0, update 10"):
        tiny_train(tmp_path, config, callbacks=[poison])
    checkpoint = read_checkpoint(newest_checkpoint(tmp_path / "checkpoints"))
    assert checkpoint.raw["global_step"] == 9
    for name, value in checkpoint.raw["state_dict"].items():
        assert value.isfinite().all(), name


class Overflow(pl.Callback):
    """What a much too large, finite gradient does."""

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 2:
            module.model[-1].weight.data[0, 0] = float("inf")


def test_checkpoint_of_infinite_weights_is_never_written(tmp_path):
    config = tiny_config(checkpoint_every_n_steps=1)
    with pytest.raises(NonFiniteLossError, match="weights are not finite after update 2"):
        tiny_train(tmp_path, config, callbacks=[Overflow()])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_1.ckpt"]
