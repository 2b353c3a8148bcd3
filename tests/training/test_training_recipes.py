"""Parts of published recipes: decay, sizes, averages and clipping that change with time or size."""

from math import cos, pi

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import tiny_config, tiny_data, tiny_model, tiny_train
from torch import nn

from repblocks.errors import ConfigurationError
from repblocks.training import ImageClassifier, OptimizerConfig, ResolutionConfig, TrainingConfig
from repblocks.training.classifier import _all_but_classifier


class Watch(pl.Callback):
    """Note decay, size and gradients of each update."""

    def __init__(self):
        self.decays, self.sizes, self.gradients = [], [], []

    def on_fit_start(self, _trainer, module):
        module.model.register_forward_pre_hook(self._size)

    def _size(self, module, inputs):
        if module.training:
            self.sizes.append(tuple(inputs[0].shape[-2:]))

    def on_train_batch_start(self, trainer, *_):
        groups = trainer.optimizers[0].param_groups
        self.decays.append([group["weight_decay"] for group in groups])

    def on_before_zero_grad(self, _trainer, module, _optimizer):
        grads = [(p.detach().clone(), p.grad) for p in module.model.parameters()]
        self.gradients.append([(p, g.clone()) for p, g in grads if g is not None])


def test_decay_falls_along_a_cosine_and_images_grow(tmp_path):
    watch = Watch()
    config = tiny_config(
        optimizer=OptimizerConfig(weight_decay=1e-4, weight_decay_end=1e-5, base_batch_size=8),
        resolution=ResolutionConfig(sizes=[6, 9], epochs=[0, 1]),
    )
    data = tiny_data(train_size=32)
    tiny_train(tmp_path, config, callbacks=[watch], data=data, max_epochs=2)
    expected = [1e-5 + 9e-5 * (1 + cos(pi * step / 8)) / 2 for step in range(8)]
    assert [free for free, _ in watch.decays] == [0] * 8
    assert [decay for _, decay in watch.decays] == pytest.approx(expected)
    assert watch.sizes == [(6, 6)] * 4 + [(9, 9)] * 4


def test_decay_stays_where_no_end_is_said(tmp_path):
    watch = Watch()
    tiny_train(tmp_path, callbacks=[watch], data=tiny_data(train_size=16))
    assert {decay for _, decay in watch.decays} == {1e-4}


@pytest.mark.parametrize(
    ("resolution", "message"),
    [
        (([6], [0, 1]), r"epochs must be 1 rising whole numbers, one for each size, got \[0, 1\]"),
        (([6, 8], [3, 3]), r"2 rising whole numbers"),
        (([0], [0]), r"sizes must be whole numbers of at least 1, got \[0\]"),
        (([6.5], [0]), r"sizes must be whole numbers"),
    ],
)
def test_impossible_sizes_are_refused(resolution, message):
    with pytest.raises(ConfigurationError, match=message):
        ResolutionConfig(*map(list, resolution))


def test_the_size_of_an_epoch_is_the_last_that_began():
    resolution = ResolutionConfig([160, 192], [1, 4])
    assert [resolution.at(epoch) for epoch in range(6)] == [None, 160, 160, 160, 192, 192]
    assert ResolutionConfig().at(3) is None


def test_the_average_may_have_its_decay_at_once():
    module = ImageClassifier(
        tiny_model(), 4, tiny_config(ema_decay=0.9, ema_warmup=False), batch_size=8
    )
    before = module.ema.module[0].weight.clone()
    nn.init.ones_(module.model[0].weight)
    module.ema.update(module.model, step=2)  # the first update starts the average
    torch.testing.assert_close(module.ema.module[0].weight, 0.9 * before + 0.1)


def test_adaptive_clipping_bounds_each_output_by_its_weights(tmp_path):
    watch = Watch()
    config = tiny_config(adaptive_clip=0.01)
    tiny_train(tmp_path, config, callbacks=[watch], data=tiny_data(train_size=16))
    assert watch.gradients
    seen = []
    for update in watch.gradients:
        for weight, gradient in update:
            axes = tuple(range(1, weight.ndim)) if weight.ndim > 1 else (0,)
            norms = [torch.linalg.vector_norm(t, dim=axes) for t in (weight, gradient)]
            seen.append((norms[1] / norms[0].clamp(min=1e-3)).max().item())
    assert max(seen) == pytest.approx(0.01, rel=0.2), "clipped, and before the update of weights"


def test_adaptive_clipping_leaves_the_classifier():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Linear(2, 2), nn.Linear(2, 3)

        def get_classifier(self):
            return self.fc

    model = Network()
    assert set(_all_but_classifier(model)) == set(model.body.parameters())
    assert len(_all_but_classifier(tiny_model())) == len(list(tiny_model().parameters()))


def test_two_ways_of_clipping_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"Either trainer\.gradient_clip_val or adaptive_"):
        tiny_train(tmp_path, tiny_config(adaptive_clip=0.02), gradient_clip_val=1.0)


def test_wrong_values_are_named_at_once():
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig(
            loss="mse",
            auxiliary_weight=-1,
            kernel_decay=-2,
            adaptive_clip=0,
            repeated_augmentation=0,
        )
    for part in (
        "loss must be one of cross_entropy, binary_cross_entropy, got 'mse'",
        "auxiliary_weight must be at least 0, got -1",
        "kernel_decay must be at least 0, got -2",
        "adaptive_clip must be None or more than 0, got 0",
        "repeated_augmentation must be at least 1, got 0",
    ):
        assert part in str(caught.value)
    with pytest.raises(ConfigurationError, match="weight_decay_end must be None or at least 0"):
        OptimizerConfig(weight_decay_end=-1)
