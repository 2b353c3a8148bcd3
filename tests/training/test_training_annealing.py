"""Blocks that are annealed train and fold at the end; a resumed run anneals as a whole one."""

import csv

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import DESCRIPTION, SILENT, tiny_config, tiny_data
from torch import nn

from repblocks.blocks import VanillaBlock
from repblocks.errors import ConfigurationError, NotFoldable
from repblocks.training import load_weights, read_checkpoint, train


def vanilla_network():
    pl.seed_everything(3, verbose=False)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        VanillaBlock(8, act_reach=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class Slopes(pl.Callback):
    """Note what each batch is trained with."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, _trainer, module, *_):
        self.seen.append(module.model[1].conv.act.slope.item())


def run(output, *, share=0.5, max_epochs=3, ckpt_path=None, **trainer):
    slopes = Slopes()
    result = train(
        tiny_config(ema_decay=0.9, anneal_share=share, checkpoint_every_n_steps=2),
        vanilla_network(),
        tiny_data(train_size=32),
        {"max_epochs": max_epochs, "log_every_n_steps": 1, **SILENT, **trainer},
        output=output,
        description=DESCRIPTION,
        ckpt_path=ckpt_path,
        callbacks=[slopes],
    )
    return result, slopes.seen


def deployed(path):
    model = vanilla_network()
    load_weights(model, read_checkpoint(path).state_dict, new_head=False)
    model.eval()[1].switch_to_deploy()
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result, slopes = run(folder)
    return folder, result, slopes


def test_the_slope_rises_with_the_updates_and_then_stays_one(whole):
    _, _, slopes = whole
    assert slopes == pytest.approx([*(step / 6 for step in range(6)), *[1] * 6])


def test_the_averaged_network_folds_at_the_end_and_not_before(whole):
    folder, result, _ = whole
    images = torch.rand(2, 1, 12, 12)
    expected = vanilla_network()
    load_weights(expected, read_checkpoint(result.last).state_dict, new_head=False)
    torch.testing.assert_close(deployed(result.last)(images), expected.eval()(images))
    assert deployed(result.best) is not None
    run(folder / "short", max_epochs=1, share=1.0)
    with pytest.raises(NotFoldable, match=r"linear where its slope is 1, got 0\.5"):
        deployed(folder / "short/checkpoints/step_2.ckpt")


def test_the_best_checkpoint_is_the_best_that_folds(whole):
    folder, result, _ = whole
    with (folder / "metrics.csv").open(newline="") as file:
        accuracies = [float(row["val_top1"]) for row in csv.DictReader(file) if row["val_top1"]]
    assert len(accuracies) == 3
    assert result.metrics["best_val_top1"] == max(accuracies[1:]), "the first is not annealed"


@pytest.mark.parametrize(("name", "done"), [("step_10.ckpt", 10), ("best.ckpt", None)])
def test_a_resumed_run_anneals_as_a_whole_one(whole, tmp_path, name, done):
    folder, result, slopes = whole
    checkpoint = folder / "checkpoints" / name
    done = done or torch.load(checkpoint, weights_only=True)["global_step"]
    if done == 12:
        pytest.skip("the last epoch was the best")
    _, rest = run(tmp_path, ckpt_path=checkpoint)
    assert rest == slopes[done:]
    expected = read_checkpoint(result.last).state_dict
    got = read_checkpoint(tmp_path / "checkpoints/last.ckpt").state_dict
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_accumulated_batches_are_one_update(tmp_path):
    _, slopes = run(tmp_path, max_epochs=2, share=1.0, accumulate_grad_batches=2)
    assert slopes == pytest.approx([0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75])


def test_an_impossible_share_is_refused():
    with pytest.raises(ConfigurationError, match=r"anneal_share must be in \(0, 1\], got 0"):
        tiny_config(anneal_share=0)
