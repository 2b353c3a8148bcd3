import csv
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny_runs import SILENT, tiny_config, tiny_data, tiny_model, tiny_train
from torch.nn import functional

from repblocks.errors import CheckpointError, ConfigurationError, NonFiniteLossError
from repblocks.training import OptimizerConfig, load_weights, read_checkpoint, validate
from repblocks.training.seeding import BatchSeed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(ema_decay=0.9, checkpoint_every_n_steps=5, tensorboard=True)
    return folder, tiny_train(folder, config, max_epochs=2, log_every_n_steps=5)


def test_run_leaves_checkpoints_logs_and_a_picture(finished):
    folder, result = finished
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "step_15.ckpt", "step_20.ckpt"]
    assert result.best == folder / "checkpoints" / "best.ckpt"
    assert result.last == folder / "checkpoints" / "last.ckpt"
    assert result.seconds > 0
    with Image.open(folder / "curves.png") as picture:
        assert picture.size == (1200, 480)
    assert len(list((folder / "tensorboard").glob("events.*"))) == 1
    assert not list(folder.rglob("*.part"))


def test_metrics_file_has_a_row_for_each_interval_and_validation(finished):
    folder, result = finished
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], bool(row["val_top1"])) for row in rows] == [
        ("5", False), ("10", False), ("12", True), ("15", False), ("20", False), ("24", True),
    ]  # fmt: skip
    assert float(rows[-1]["val_top1"]) == result.metrics["val_top1"]
    assert result.metrics["best_val_top1"] == max(
        float(row["val_top1"]) for row in rows if row["val_top1"]
    )


def test_validate_agrees_with_counting_by_hand(finished):
    _, result = finished
    model = tiny_model().eval()
    load_weights(model, read_checkpoint(result.last).state_dict, new_head=False)
    data = tiny_data()
    evaluation = validate(model, data, SILENT)
    batches = list(data.val_dataloader())
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    scores = model(images)
    right = scores.argmax(1) == targets
    assert evaluation.num_images == 16
    assert evaluation.top1 == pytest.approx(right.double().mean().item())
    assert evaluation.top1 == pytest.approx(result.metrics["val_top1"])
    assert evaluation.top5 == 1.0
    assert evaluation.loss == pytest.approx(functional.cross_entropy(scores, targets).item(), 1e-5)
    for index, name in enumerate(data.class_names):
        expected = right[targets == index].double().mean().item()
        assert evaluation.per_class[name] == pytest.approx(expected)
    console = Console(record=True, width=80)
    console.print(evaluation.table())
    text = console.export_text()
    assert all(name in text for name in data.class_names)
    assert f"{evaluation.top1:.2%}" in text


def test_folder_with_a_run_is_not_written_over(finished):
    folder, _ = finished
    before = (folder / "metrics.csv").read_bytes()
    with pytest.raises(ConfigurationError, match=r"already holds a run.*ckpt_path=.*last\.ckpt"):
        tiny_train(folder)
    assert (folder / "metrics.csv").read_bytes() == before


def test_resuming_another_network_is_refused_before_anything_starts(finished, tmp_path):
    _, result = finished
    with pytest.raises(CheckpointError, match=r"11 unexpected \(ema\.module"):
        tiny_train(tmp_path, tiny_config(), ckpt_path=result.last)
    assert list(tmp_path.iterdir()) == []


def test_resuming_past_the_last_epoch_is_refused(finished, tmp_path):
    _, result = finished
    config = tiny_config(ema_decay=0.9)
    with pytest.raises(ConfigurationError, match=r"complete: 2 of trainer.max_epochs=1 are done"):
        tiny_train(tmp_path, config, ckpt_path=result.last, max_epochs=1)


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, result = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    config = tiny_config(ema_decay=0.9, checkpoint_every_n_steps=5)
    for name, limits in (
        ("max_epochs=2", {"max_epochs": 2}),
        ("max_steps=24", {"max_epochs": 3, "max_steps": 24}),
    ):
        message = rf"trainer.{name} are done.*Raise trainer.*deploy.py ckpt_path=.*last\.ckpt"
        with pytest.raises(ConfigurationError, match=message):
            tiny_train(folder, config, ckpt_path=result.last, **limits)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_checkpoint_without_progress_cannot_be_continued(finished, tmp_path):
    _, result = finished
    raw = torch.load(result.last, weights_only=True)
    del raw["loops"]
    torch.save(raw, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x.ckpt has no 'loops': it cannot be continued"):
        tiny_train(tmp_path, tiny_config(ema_decay=0.9), ckpt_path=tmp_path / "x.ckpt")


def test_a_run_that_stops_before_a_checkpoint_leaves_no_folder_for_them(tmp_path):
    config = tiny_config(
        non_finite_patience=1, optimizer=OptimizerConfig(lr=1e30, base_batch_size=8)
    )
    with pytest.raises(NonFiniteLossError, match="not finite in 1 updates in a row"):
        tiny_train(tmp_path, config)
    assert not (tmp_path / "checkpoints").exists()


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"Cannot write into the output folder.*file"):
        tiny_train(tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, r"trainer.max_epochs must be at least 1, got 0"),
        ({"max_epochs": None}, r"trainer.max_epochs must be at least 1, got None"),
        ({"gradient_clip_val": -1}, r"gradient_clip_val must be at least 0, .* got -1\."),
        ({"log_every_n_steps": 0}, r"trainer.log_every_n_steps must be at least 1, got 0"),
        ({"logger": True, "plugins": []}, r"trainer.logger, trainer.plugins cannot be set"),
        ({"max_epoch": 3}, r"refuses its options: .*max_epoch"),
        ({"precision": "7-mixed"}, r"refuses its options: .*7-mixed"),
        ({"sync_batchnorm": True}, r"sync_batchnorm=true needs GPUs, and the accelerator is the"),
    ],
)
def test_impossible_trainer_options_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        tiny_train(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_run_without_validation_has_no_best_checkpoint(tmp_path):
    result = tiny_train(tmp_path, data=tiny_data(train_size=16), limit_val_batches=0)
    assert result.best is None
    assert result.last is not None
    assert "val_top1" not in result.metrics


def test_randomness_depends_on_seed_process_epoch_and_batch_alone():
    def draw(seed, rank, epoch, batch):
        trainer = SimpleNamespace(global_rank=rank, current_epoch=epoch)
        BatchSeed(seed).on_train_batch_start(trainer, None, None, batch)
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = {key: draw(*key) for key in keys}
    assert draw(*keys[2]) == drawn[keys[2]]
    assert len({value for values in drawn.values() for value in values}) == 3 * len(keys)
