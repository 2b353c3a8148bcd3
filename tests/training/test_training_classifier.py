import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import tiny_config, tiny_data, tiny_model, tiny_train
from torch import nn

from repblocks.errors import ConfigurationError
from repblocks.training import ImageClassifier, MixConfig, OptimizerConfig, read_checkpoint


def classifier(**options):
    return ImageClassifier(tiny_model(), 4, tiny_config(**options), batch_size=8)


def test_average_holds_parameters_and_statistics_and_copies_counts(tmp_path):
    """Against the recursion by hand: e <- d e + (1 - d) w, where d grows with the updates."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, _trainer, module, *_):
            seen.append({k: v.clone() for k, v in module.model.state_dict().items()})

    tiny_train(
        tmp_path, tiny_config(ema_decay=0.6), callbacks=[Watch()], data=tiny_data(train_size=32)
    )
    assert len(seen) == 4
    expected = dict(seen[0])  # the first update starts the average
    for step, state in enumerate(seen[1:], start=2):
        decay = min(1 - step ** (-2 / 3), 0.6)
        for name, value in state.items():
            is_float = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if is_float else value
    got = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").state_dict
    assert got.keys() == expected.keys()
    assert got["1.norm.num_batches_tracked"] == 4
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)
    assert not torch.equal(got["1.norm.running_var"], seen[-1]["1.norm.running_var"])


def test_evaluation_uses_the_average_if_there_is_one():
    module = classifier(ema_decay=0.9).eval()
    nn.init.zeros_(module.ema.module[-1].weight)
    nn.init.zeros_(module.ema.module[-1].bias)
    images = torch.randn(2, 1, 12, 12)
    assert module(images).abs().max() == 0
    assert module.model(images).abs().max() > 0
    assert not any(parameter.requires_grad for parameter in module.ema.parameters())


def test_odd_batch_cannot_be_mixed():
    config = tiny_config(mix=MixConfig(mixup_alpha=0.2))
    with pytest.raises(ConfigurationError, match=r"a batch must be even, got 5\."):
        ImageClassifier(tiny_model(), 4, config, batch_size=5)
    module = classifier(mix=MixConfig(mixup_alpha=0.2))
    with pytest.raises(ConfigurationError, match=r"must be even, got 7. Choose an even batch_size"):
        module.training_step((torch.randn(7, 1, 12, 12), torch.zeros(7).long()), 0)


def test_loss_is_smoothed_cross_entropy():
    module = classifier(label_smoothing=0.2).eval()
    images, targets = torch.randn(6, 1, 12, 12), torch.tensor([0, 1, 2, 3, 0, 1])
    module.log = lambda *_args, **_kwargs: None
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(module.model(images), targets)
    torch.testing.assert_close(module.training_step((images, targets), 0), expected)


def test_network_and_images_take_the_channels_last_layout():
    module = ImageClassifier(
        nn.Sequential(nn.Conv2d(3, 5, 3)), 5, tiny_config(channels_last=True), batch_size=8
    )
    layouts = []
    module.model.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    module(torch.randn(2, 3, 8, 8))
    assert layouts == [True]
    assert module.model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_one_class_is_no_classification():
    with pytest.raises(ConfigurationError, match="at least 2 classes, got 1"):
        ImageClassifier(tiny_model(1), 1, tiny_config(), batch_size=8)


def test_learning_rate_counts_accumulated_batches(tmp_path):
    config = tiny_config(optimizer=OptimizerConfig(lr=0.1, base_batch_size=32))
    rates = []

    class Watch(pl.Callback):
        def on_train_start(self, trainer, _module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    tiny_train(tmp_path, config, callbacks=[Watch()], accumulate_grad_batches=2)
    assert rates == [pytest.approx(0.1 * 8 * 2 / 32)]


def test_frozen_norms_stay_frozen_over_epochs_with_validation(tmp_path):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, _trainer, module, *_):
            seen.append((module.model[1].norm.training, module.model[1].training))

    config = tiny_config(execution="int8", freeze_norms=True)
    tiny_train(tmp_path, config, callbacks=[Watch()], data=tiny_data(train_size=32), max_epochs=2)
    assert seen == [(False, True)] * len(seen)
    assert len(seen) == 8
    state = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").state_dict
    fresh = tiny_model().state_dict()
    for name in ("1.norm.running_mean", "1.norm.running_var"):
        assert torch.equal(state[name], fresh[name])


def test_int8_needs_frozen_norms():
    with pytest.raises(ConfigurationError, match="freeze_norms must be true with execution=int8"):
        tiny_config(execution="int8")
