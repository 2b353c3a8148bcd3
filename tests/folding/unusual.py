"""How modules that are written in unusual ways are judged: in float64, and called again."""

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from truth import calibrate, relative_error

from repblocks.folding.fold import fold


class Layers(nn.Module):
    """What the code of a test works with; the code is given as a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def conv(*channels, **options):
    return nn.Conv2d(*channels, 1, **options)


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def folded(model, *example):
    """Fold a model, and check it on the example, on other values of it, and when called again."""
    torch.manual_seed(0)
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        calibrate(model.double(), *example[:1])
    model.double().eval()
    result = fold(copy.deepcopy(model), example if len(example) > 1 else example[0], verify=False)
    others = tuple(x + 0.1 * torch.randn_like(x) if isinstance(x, Tensor) else x for x in example)
    for inputs in (example, others, example):
        agrees(result, model, *inputs)
    return result


def agrees(result, model, *inputs, **options):
    """Check that two models give the same, from the same random numbers."""
    found, truth = (_run(each, inputs, options) for each in (result, model))
    assert len(found) == len(truth)
    for ours, theirs in zip(found, truth, strict=True):
        assert ours.dtype == theirs.dtype
        assert relative_error(ours, theirs) < 1e-12


def _run(model, inputs, options):
    torch.manual_seed(1)
    with torch.no_grad():
        leaves = tree_leaves(model(*(_own(x) for x in inputs), **options))
    return [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]


def _own(value):
    return value.clone() if isinstance(value, Tensor) else value
