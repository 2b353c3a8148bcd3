import pytest

from repblocks.errors import ConfigurationError, UnknownNameError
from repblocks.training import MixConfig, OptimizerConfig, SchedulerConfig, TrainingConfig


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda: OptimizerConfig(lr=0, momentum=1.0), ["lr must be more than 0, got 0", "got 1.0"]),
        (lambda: OptimizerConfig(base_batch_size=0, weight_decay=-1), ["got 0", "got -1"]),
        (
            lambda: SchedulerConfig(warmup_epochs=-2, warmup_lr=-3, min_lr=-4, cooldown_epochs=-5),
            ["got -2", "got -3", "got -4", "got -5"],
        ),
        (
            lambda: MixConfig(mixup_alpha=-1, cutmix_alpha=-2, prob=3, switch_prob=-4),
            ["mixup_alpha must be at least 0, got -1", "got -2", "[0, 1], got 3", "got -4"],
        ),
        (
            lambda: TrainingConfig(seed=-1, label_smoothing=1.0, ema_decay=0.0),
            ["seed must be in [0, 2**32), got -1", "[0, 1), got 1.0", "None or in (0, 1), got 0.0"],
        ),
        (
            lambda: TrainingConfig(
                non_finite_patience=0, checkpoint_every_n_steps=0, keep_step_checkpoints=0
            ),
            ["non_finite_patience must be at least 1, got 0", "None or at least 1", "-1 or at"],
        ),
    ],
)
def test_every_wrong_field_is_in_one_error(build, parts):
    with pytest.raises(ConfigurationError) as caught:
        build()
    assert [part for part in parts if part not in str(caught.value)] == []


def test_misspelt_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"optimizer 'adamww'. Did you mean 'adamw'\?"):
        OptimizerConfig(name="adamww")
    with pytest.raises(UnknownNameError, match=r"schedule 'cosin'. Did you mean 'cosine'\?"):
        SchedulerConfig(name="cosin")


def test_mixing_is_active_only_with_an_alpha_and_a_probability():
    assert not MixConfig().is_active
    assert not MixConfig(mixup_alpha=0.2, prob=0.0).is_active
    assert MixConfig(cutmix_alpha=1.0).is_active
