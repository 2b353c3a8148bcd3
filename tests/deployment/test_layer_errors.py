"""The error of each layer shows where a fold is wrong, and nothing where it is not."""

from __future__ import annotations

import torch
from deployment_nets import images, trained_net
from torch import Tensor, nn

from repblocks.deployment.layer_errors import compare_layers
from repblocks.folding.fold import fold
from repblocks.folding.switch import fold_blocks


def test_each_block_is_as_near_to_the_truth_as_before() -> None:
    model = trained_net()
    found = compare_layers(model, fold_blocks(model)[0], images())
    assert [(one.path, one.kind) for one in found] == [
        *(("body.0", "RepVGGBlock"), ("body.1", "RepVGGBlock"), ("head", "Linear")),
    ]
    for one in found:
        assert 0 < one.rms_rel < 3e-6
        assert 0 < one.own_rms_rel < 3e-6


def test_in_float64_only_the_wrong_layer_and_those_after_it_differ() -> None:
    model = trained_net().double()
    folded, _ = fold_blocks(model)
    assert all(one.rms_rel < 1e-13 for one in compare_layers(model, folded, images().double()))
    folded.body[1].conv.weight.data *= 1.001
    first, *others = compare_layers(model, folded, images().double())
    assert first.rms_rel < 1e-13
    assert all(1e-4 < one.rms_rel < 1e-2 for one in others)


def test_what_became_one_layer_is_compared_where_it_is_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, 8, 8) + 1)
    model[1].running_var *= 3
    x = torch.randn(2, 3, 8, 8)
    found = compare_layers(model.eval(), fold(model, x), x)
    # The convolution gives what the normalisation gave, and is not compared with its old self.
    assert [one.path for one in found] == ["1", "2"]


def test_what_a_new_layer_replaced_is_compared_with_it() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
            self.sum, self.act, self.last = Add(), nn.Sigmoid(), nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.sum(self.one(x), self.two(x))))

    class Add(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first + second

    torch.manual_seed(0)
    model, x = Sum().eval(), torch.randn(2, 3, 8, 8)
    folded = fold(model, x)
    assert [one.path for one in compare_layers(model, folded, x)] == ["sum", "act", "last"]
    conv = next(m for m in folded.modules() if isinstance(m, nn.Conv2d))
    conv.weight.data *= 1.001
    first, *_ = compare_layers(model, folded, x)
    assert first.path == "sum"
    assert first.rms_rel > 1e-4 > 1e-6 > first.own_rms_rel
