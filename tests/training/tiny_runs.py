"""What the tests of training share: a network, data and runs that take about a second."""

from pathlib import Path

import pytorch_lightning as pl
from timm.layers import DropPath
from torch import nn

from repblocks.data import Augmentation, SyntheticDataModule
from repblocks.training import (
    MixConfig,
    OptimizerConfig,
    ResolutionConfig,
    TrainingConfig,
    train,
)

DESCRIPTION = {"model": {"name": "tiny", "kwargs": {"width": 8}}, "config": {"seed": 7}}
SILENT = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = DropPath(0.3)

    def forward(self, x):
        return x + self.drop(self.norm(self.conv(x)).relu())


def tiny_model(num_classes=4):
    pl.seed_everything(3, verbose=False)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        Residual(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8, num_classes),
    )


def tiny_data(**options):
    settings = {
        "num_classes": 4,
        "image_size": 12,
        "in_channels": 1,
        "train_size": 96,
        "val_size": 16,
        "batch_size": 8,
        **options,
    }
    return SyntheticDataModule(**settings)


def tiny_config(**options):
    settings = {
        "tensorboard": False,
        "optimizer": OptimizerConfig(lr=0.05, base_batch_size=8),
        **options,
    }
    return TrainingConfig(**settings)


def tiny_train(output: Path, config=None, *, ckpt_path=None, callbacks=(), data=None, **trainer):
    return train(
        config or tiny_config(),
        tiny_model(),
        data or tiny_data(),
        {"max_epochs": 1, "log_every_n_steps": 1, **SILENT, **trainer},
        output=output,
        description=DESCRIPTION,
        ckpt_path=ckpt_path,
        callbacks=callbacks,
    )


def random_run(output: Path, *, workers=0, ckpt_path=None, callbacks=()):
    """Run all that is random or changes with time: mixing, erasing, DropPath, dropout, sizes.

    There are 4 epochs of 6 updates.
    """
    config = tiny_config(
        seed=7,
        ema_decay=0.95,
        label_smoothing=0.1,
        checkpoint_every_n_steps=2,
        mix=MixConfig(mixup_alpha=0.4, cutmix_alpha=1.0, prob=0.8),
        repeated_augmentation=3,
        resolution=ResolutionConfig([8, 10], [0, 2]),
        optimizer=OptimizerConfig(lr=0.05, base_batch_size=8, weight_decay_end=1e-5),
    )
    augmentation = Augmentation(random_erasing=0.5, horizontal_flip=0.5)
    tiny_train(
        output,
        config,
        data=tiny_data(num_workers=workers, augmentation=augmentation),
        ckpt_path=ckpt_path,
        callbacks=callbacks,
        max_epochs=4,
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
    )
