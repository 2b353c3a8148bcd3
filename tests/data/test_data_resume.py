"""A run that stops in the middle of an epoch goes on with exactly the images that were left."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from repblocks.data import SyntheticDataModule
from repblocks.data._images import TrainingImages
from repblocks.errors import ConfigurationError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
BATCHES, BATCH_SIZE, EPOCHS = 5, 2, 3


class Positions(TrainingImages):
    def _augmented(self, position):
        return super()._augmented(position)[0], torch.tensor(position)


class Data(SyntheticDataModule):
    """Gives each image's (epoch, index) for its class."""

    def __init__(self, **options):
        options = {"train_size": BATCHES * BATCH_SIZE + 1, "batch_size": BATCH_SIZE, **options}
        super().__init__(image_size=4, val_size=4, **options)

    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.dataset.__class__ = Positions
        return loader


class Recorder(pl.LightningModule):
    def __init__(self, crash_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(48, 1)
        self.crash_at = crash_at
        self.seen = []

    def training_step(self, batch):
        if self.global_step == self.crash_at:
            raise RuntimeError("killed")
        images, positions = batch
        self.seen.append([tuple(position) for position in positions.tolist()])
        return self.layer(images.flatten(1)).sum()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, folder, *, crash_at=None, ckpt_path=None, save="step", **options):
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    when = {"every_n_train_steps": 1} if save == "step" else {"save_on_train_epoch_end": True}
    checkpoints = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[checkpoints],
        **options,
    )
    model = Recorder(crash_at)
    try:
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=ckpt_path and True)
    except RuntimeError as error:
        if str(error) != "killed":
            raise
    return model.seen


def test_the_uninterrupted_run_sees_every_epoch_once(tmp_path):
    seen = [pair for batch in fit(Data(), tmp_path) for pair in batch]
    per_epoch = [[index for e, index in seen if e == epoch] for epoch in range(EPOCHS)]
    assert [len(set(indices)) for indices in per_epoch] == [BATCHES * BATCH_SIZE] * EPOCHS


@pytest.mark.parametrize(
    ("workers", "stop_after", "save"),
    [
        (0, 3, "step"),
        (0, BATCHES + 3, "step"),
        (2, BATCHES + 3, "step"),
        (0, BATCHES, "step"),
        (2, BATCHES, "step"),
        (0, BATCHES, "epoch"),
        (2, 2 * BATCHES, "epoch"),
    ],
)
def test_a_resumed_run_sees_the_rest_of_its_epoch_and_then_whole_epochs(
    tmp_path, workers, stop_after, save
):
    whole = fit(Data(), tmp_path / "whole")
    before = fit(Data(num_workers=workers), tmp_path / "killed", crash_at=stop_after, save=save)
    assert before == whole[:stop_after]
    after = fit(
        Data(num_workers=workers),
        tmp_path / "resumed",
        ckpt_path=tmp_path / "killed" / f"step={stop_after}.ckpt",
    )
    assert after == whole[stop_after:]


def test_a_run_with_fewer_batches_an_epoch_resumes_too(tmp_path):
    whole = fit(Data(), tmp_path, limit_train_batches=2)
    for step in (2, 3):
        checkpoint = tmp_path / f"step={step}.ckpt"
        rest = fit(Data(), tmp_path / f"from{step}", ckpt_path=checkpoint, limit_train_batches=2)
        assert rest == whole[step:]


def test_the_position_is_read_once(tmp_path):
    fit(Data(), tmp_path, crash_at=3)
    data = Data()
    fit(data, tmp_path / "resumed", ckpt_path=tmp_path / "step=3.ckpt")
    assert fit(data, tmp_path / "fresh") == fit(Data(), tmp_path / "other")


def test_evaluating_a_checkpoint_does_not_move_a_later_training(tmp_path):
    whole = fit(Data(), tmp_path)
    data = Data()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.validate(Recorder(), data, ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert fit(data, tmp_path / "fresh") == whole


def test_the_middle_of_an_epoch_of_another_run_is_refused(tmp_path):
    fit(Data(), tmp_path)
    with pytest.raises(
        ConfigurationError,
        match="after batch 3 of epoch 1.*seed was 0 and is 7; batch_size was 2 and is 4",
    ):
        fit(Data(batch_size=4, seed=7), tmp_path / "b", ckpt_path=tmp_path / "step=8.ckpt")


def test_another_run_may_go_on_at_the_end_of_an_epoch(tmp_path):
    fit(Data(), tmp_path)
    seen = fit(Data(seed=7), tmp_path / "b", ckpt_path=tmp_path / f"step={BATCHES}.ckpt")
    assert len(seen) == (EPOCHS - 1) * BATCHES
