"""A fold shares no memory with its model, and does not let the model's code write to it."""

import copy

import pytest
import torch
from torch import nn

from repblocks.folding.fold import fold


class Clipped(nn.Module):
    """Code that clips its weight in place whenever it runs, in a way that cannot be traced."""

    def __init__(self, write):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.write = write

    def forward(self, x):
        if len(list(x)) > 0:
            self.write(self.conv.weight)
        return self.conv(x)


def memory(model):
    held = [*model.parameters(), *model.buffers()]
    held += [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in held}


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.data.clamp_(-0.05, 0.05),
        lambda weight: weight.detach().mul_(0.5),
        lambda weight: weight.data.copy_(weight.data * 0.5),
        lambda weight: weight.view(-1)[:5].data.zero_(),
    ],
)
def test_a_model_that_writes_to_its_weights_is_not_changed(write):
    model = nn.Sequential(Clipped(write), nn.BatchNorm2d(4), nn.ReLU()).eval()
    before = copy.deepcopy(model.state_dict())
    fold(model, torch.randn(2, 3, 6, 6), verify=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Viewed(nn.Module):
    """A weight that its code reshapes, which a trace keeps as a constant."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 27))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = nn.functional.conv2d(x, self.weight.view(4, 3, 3, 3))
        return self.norm(x).relu() + x.exp()


@pytest.mark.parametrize("example", [torch.randn(2, 3, 6, 6), None])
def test_nothing_is_shared(example):
    first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.ReLU())
    model = nn.Sequential(first, Viewed(), nn.Sigmoid(), nn.Conv2d(4, 4, 1)).eval()
    model[3].weight = nn.Parameter(model[3].weight.data)
    result = fold(model, example, verify=False)
    assert not memory(model) & memory(result)


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU()).eval()
    model[2].weight = model[0].weight
    result = fold(model, torch.randn(2, 3, 6, 6))
    assert result[2].weight is result[0].weight
    assert result[0].weight.data_ptr() != model[0].weight.data_ptr()
