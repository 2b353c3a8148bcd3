import io
import logging
from itertools import pairwise

import pytest
import torch
from torch import nn

from repblocks.blocks import RepBlock, RepVGGBlock
from repblocks.errors import ConfigurationError
from repblocks.training.config import SCHEDULES, OptimizerConfig, SchedulerConfig
from repblocks.training.optimization import (
    build_optimizer,
    build_scheduler,
    decayed_names,
    parameter_groups,
    scaled_lr,
)


class ScaledBlock(RepBlock):
    """Its first scale becomes part of a kernel, its second does not."""

    decayed = ("scale",)
    is_deployed = False

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.scale, self.other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def _fold(self):
        return {}


def names_of(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group["weight_decay"]: sorted(names[id(parameter)] for parameter in group["params"])
        for group in groups
    }


def test_1d_parameters_and_biases_are_decayed_only_where_a_block_says_so():
    model = nn.Sequential(ScaledBlock(), nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert names_of(model, parameter_groups(model, 0.01)) == {
        0.01: ["0.scale", "0.weight", "1.weight"],
        0.0: ["0.other", "1.bias", "2.bias", "2.weight"],
    }


def test_block_at_the_root_declares_names_without_a_prefix():
    assert decayed_names(ScaledBlock()) == {"scale"}


def test_identity_normalization_of_repvgg_is_decayed():
    model = nn.Sequential(RepVGGBlock(4, 4, 3))
    declared = decayed_names(model)
    assert declared
    assert all(dict(model.named_parameters())[name].ndim == 1 for name in declared)
    groups = names_of(model, parameter_groups(model, 0.5))
    assert declared <= set(groups[0.5])


def test_what_a_timm_model_excludes_is_not_decayed():
    model = nn.Linear(2, 3)
    model.no_weight_decay = lambda: {"weight"}
    assert names_of(model, parameter_groups(model, 0.01)) == {0.0: ["bias", "weight"]}


def test_recipes_that_decay_all_leave_only_what_is_exempt():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    config = OptimizerConfig(weight_decay=0.01, decay_all=True)
    optimizer = build_optimizer(model, config, 128, exempt=["0.weight"])
    assert names_of(model, optimizer.param_groups) == {
        0.0: ["0.weight"],
        0.01: ["0.bias", "1.bias", "1.weight"],
    }


def test_learning_rate_is_scaled_by_the_global_batch_and_logged(caplog):
    config = OptimizerConfig(lr=0.1, base_batch_size=256)
    with caplog.at_level(logging.INFO):
        assert scaled_lr(config, 1024) == pytest.approx(0.4)
    assert "Learning rate 0.4 = 0.1 x 1024 images" in caplog.text
    optimizer = build_optimizer(nn.Linear(2, 3), config, 128)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


def test_wrong_optimizer_options_are_named():
    config = OptimizerConfig(options={"betas": [0.9, 0.99]})
    with pytest.raises(ConfigurationError, match=r"'sgd' refuses its options \{'betta'"):
        build_optimizer(nn.Linear(2, 3), OptimizerConfig(options={"betta": 1}), 128)
    assert config.options  # timm itself drops betas for an optimizer without them


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigurationError, match="no parameter with requires_grad=True"):
        build_optimizer(nn.Linear(2, 3).requires_grad_(False), OptimizerConfig(), 128)


def rates(config, num_updates=40, updates_per_epoch=10):
    optimizer = torch.optim.SGD(nn.Linear(2, 3).parameters(), lr=1.0)
    scheduler = build_scheduler(
        optimizer, config, num_updates=num_updates, updates_per_epoch=updates_per_epoch
    )
    seen = []
    for update in range(num_updates):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update + 1)
    return seen, scheduler


def test_schedule_moves_with_every_update():
    config = SchedulerConfig(warmup_epochs=0.5, warmup_lr=0.5, min_lr=0.1, cooldown_epochs=1)
    seen, _ = rates(config)
    assert seen[:5] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert all(first > second for first, second in pairwise(seen[5:31]))
    assert seen[30:] == pytest.approx([0.1] * 10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_be_saved_safely_and_restored(name):
    config = SchedulerConfig(name=name, warmup_epochs=1, options={"decay_epochs": 1})
    _, scheduler = rates(config)
    buffer = io.BytesIO()
    torch.save(scheduler.state_dict(), buffer)
    buffer.seek(0)
    scheduler.load_state_dict(torch.load(buffer, weights_only=True))


def test_constant_schedule_stays_constant():
    assert rates(SchedulerConfig(name="constant"))[0] == [1.0] * 40


def test_impossible_schedules_are_refused():
    with pytest.raises(ConfigurationError, match=r"less than the 4 epochs .* got 3 \+ 1"):
        rates(SchedulerConfig(warmup_epochs=3, cooldown_epochs=1))
    with pytest.raises(ConfigurationError, match=r"'cosine' refuses its options \{'decai_rate'"):
        rates(SchedulerConfig(options={"decai_rate": 1}))
