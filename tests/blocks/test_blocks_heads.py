"""Heads: one linear layer when deployed, or none, and what they return in training."""

import copy

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks import fold, fold_blocks
from repblocks.algebra import is_batch_norm
from repblocks.blocks import AuxiliaryHeads, AveragedHeads, NormLinear, create_block
from repblocks.blocks import main_and_others as parted
from repblocks.errors import ConfigurationError, NotFoldable

FEATURES, CLASSES = 11, 5
LINEAR_HEADS = {
    "norm_linear": lambda: NormLinear(FEATURES, CLASSES),
    "averaged": lambda: AveragedHeads(FEATURES, CLASSES),
    "averaged of three": lambda: AveragedHeads(FEATURES, CLASSES, num_heads=3),
}
linear_heads = pytest.mark.parametrize("name", LINEAR_HEADS)


def features(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, FEATURES, generator=generator, dtype=torch.float64)


def ready(name):
    torch.manual_seed(0)
    head = LINEAR_HEADS[name]().double()
    for bias in (m.bias for m in head.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(bias)
    return calibrate(head, features())


def layers(model):
    return [type(m) for m in model.modules() if not list(m.children())]


@linear_heads
def test_a_head_becomes_one_linear_layer(name):
    head = ready(name)
    truth = head(features(2))
    head.switch_to_deploy()
    assert head.is_deployed
    assert layers(head) == [nn.Linear]
    assert relative_error(head(features(2)), truth) < 1e-12
    assert torch.equal(head.train()(features(2)), head.eval()(features(2)))
    before = copy.deepcopy(head.state_dict())
    head.switch_to_deploy()
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


@linear_heads
def test_fold_finds_the_linear_layer_by_itself(name):
    head = ready(name)
    folded = fold(head, features(2))
    assert [kind for kind in layers(folded) if kind is not nn.Identity] == [nn.Linear]
    assert relative_error(folded(features(2)), head(features(2))) < 1e-12


@linear_heads
def test_dtype_gradients_and_modes_are_kept(name):
    head = ready(name).float().requires_grad_(False)
    with pytest.raises(NotFoldable, match=r"call \.eval"):
        head.train().switch_to_deploy()
    assert not head.is_deployed
    head.eval().switch_to_deploy()
    assert {(p.dtype, p.requires_grad) for p in head.parameters()} == {(torch.float32, False)}
    trainable = ready(name)
    trainable.switch_to_deploy()
    assert all(p.requires_grad for p in trainable.parameters())


def test_averaged_heads_return_a_list_in_training_and_the_average_in_evaluation():
    head = ready("averaged of three")
    each = [one(features()) for one in head.heads]
    assert relative_error(head(features()), sum(each) / 3) < 1e-12
    main, others = parted(head.train()(features()))
    assert [scores.shape for scores in (main, *others)] == [(16, CLASSES)] * 3
    (main.sum() + others[1].sum()).backward()
    trained = [all(p.grad is not None for p in one.parameters()) for one in head.heads]
    assert trained == [True, False, True]


class Network(nn.Module):
    """Two stages with an auxiliary classifier of the first, and averaged heads."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            [create_block("repvgg", 3, 8, 3), create_block("acb", 8, 11, 3)]
        )
        self.auxiliary = AuxiliaryHeads([8, FEATURES], CLASSES)
        self.head = AveragedHeads(FEATURES, CLASSES)

    def forward(self, x):
        found = [x := stage(x) for stage in self.stages]
        scores = self.head(x.mean((2, 3)))
        others = self.auxiliary(found)
        return [*scores, *others] if self.training else scores


def images(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 9, 12, generator=generator, dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return calibrate(Network().double(), images())


def test_auxiliary_heads_are_trained_and_vanish():
    model = network()
    main, others = parted(model.train()(images()))
    assert len(others) == 3
    (main.square().mean() + 0.1 * sum(scores.square().mean() for scores in others)).backward()
    assert all(p.grad is not None for p in model.parameters())
    truth = model.eval()(images(2))
    assert parted(truth)[1] == []
    folded, blocks = fold_blocks(model)
    assert list(folded.auxiliary.state_dict()) == []
    assert "auxiliary" in {block.path for block in blocks}
    assert not any(map(is_batch_norm, folded.modules()))
    assert relative_error(folded(images(2)), truth) < 1e-12
    assert list(folded.train().auxiliary([])) == []


def test_auxiliary_heads_refuse_training_mode():
    model = network().train()
    with pytest.raises(NotFoldable, match=r"call \.eval"):
        model.auxiliary.switch_to_deploy()
    assert not model.auxiliary.is_deployed


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"main": torch.zeros(2, 5)}, "that starts with the main ones, got dict"),
        ([], "that starts with the main ones, got list"),
        ([torch.zeros(2, 5), torch.zeros(2, 4)], r"the first, \(2, 5\), got \(2, 4\)"),
    ],
)
def test_other_outputs_are_refused(outputs, message):
    with pytest.raises(ConfigurationError, match=message):
        parted(outputs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NormLinear(0, 5), "in_features must be .*at least 1.*got 0"),
        (lambda: AveragedHeads(8, 5, num_heads=0), "num_heads must be .*at least 1.*got 0"),
        (lambda: AuxiliaryHeads([8], 0), "num_classes must be .*at least 1.*got 0"),
    ],
)
def test_wrong_sizes_are_refused(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()
