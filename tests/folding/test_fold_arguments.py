"""How a folded model can be called: as the original, or it says why not."""

import pickle

import pytest
import torch
from torch import nn
from unusual import Layers, agrees, conv, folded, image

from repblocks.folding.fold import fold


class Flagged(Layers):
    """A flag decides what is returned."""

    def __init__(self):
        super().__init__(None, one=conv(4, 4), two=conv(4, 4))

    def forward(self, x, feats=False, scale=None):
        y = self.one(x) + self.two(x)
        y = y if scale is None else y * scale
        return (y, x.relu()) if feats else y


def test_arguments_that_were_traced_otherwise_are_refused():
    x = image(2, 4, 5, 6)
    result = folded(Flagged(), x, True)
    for twin in (result, pickle.loads(pickle.dumps(result))):
        with pytest.raises(AssertionError, match=r"folded for feats=True; fold it again"):
            twin(x, False)
        with pytest.raises(AssertionError, match=r"folded for scale=None"):
            twin(x, True, scale=x)
    assert len(result(x, feats=True, scale=None)) == 2
    exported = torch.export.export(result, (x, True)).module()
    agrees(exported, result, x, True)


def test_a_model_that_is_a_layer_keeps_its_arguments():
    x = image(2, 4, 5, 6)
    model = Flagged()
    result = folded(model, x)
    assert len(result.fold_report.folded) == 1
    agrees(result, model, x, False, scale=None)
    with pytest.raises(AssertionError, match=r"folded for feats=False"):
        result(x, True)


class Many(Layers):
    """Any number of inputs, and options."""

    def __init__(self):
        super().__init__(None, one=conv(4, 4), two=conv(4, 4), three=conv(4, 4))

    def forward(self, *xs, **options):
        y = self.one(xs[0]) + self.two(xs[0]) * options.get("gain", 1)
        return y + self.three(xs[1]) if len(xs) > 1 else y


def test_any_number_of_arguments_stays_so():
    folded(Many(), image(2, 4, 5, 6), image(2, 4, 5, 6))
    outer = Layers(lambda m, x: m.inner(x).relu() + m.inner_two(x, gain=3), inner=Many())
    outer.inner_two = Many()
    folded(outer, image(2, 4, 5, 6))


class Named(Layers):
    """An argument that must be named."""

    def __init__(self):
        super().__init__(None, one=conv(4, 4), two=conv(4, 4))

    def forward(self, x, *, gain=2.0, mask=None):
        return (self.one(x) + self.two(x)) * gain if mask is None else x


def test_named_arguments_stay_named_and_are_checked():
    x = image(2, 4, 5, 6)
    model = Named()
    result = folded(model, x)
    assert len(result.fold_report.folded) == 1
    agrees(result, model, x, gain=2.0)
    with pytest.raises(AssertionError, match=r"folded for gain=2\.0"):
        result(x, gain=3.0)
    outer = Layers(lambda m, x: m.inner(x, gain=3.0).relu(), inner=Named())
    assert len(folded(outer, x).fold_report.folded) == 1


def test_arguments_may_be_named_in_any_order():
    class Inner(Layers):
        def forward(self, x, first, second):
            return self.one(x) + self.two(x) + first.relu() - second.tanh()

    inner = Inner(None, one=conv(4, 4), two=conv(4, 4))
    outer = Layers(lambda m, x: m.inner(x, second=x * 2, first=x * 3), inner=inner)
    assert len(folded(outer, image(2, 4, 5, 6)).fold_report.folded) == 1


def test_attributes_may_have_the_names_of_those_of_a_graph():
    model = Layers(lambda m, x: (m.one(x) + m.two(x)).relu() * m.graph, one=conv(4, 4))
    model.two = conv(4, 4)
    model.graph, model.code = 3, "own"
    result = fold(model.double(), image(2, 4, 5, 6), verify=False)
    assert (result.graph, result.code) == (3, "own")
    folded(model, image(2, 4, 5, 6))


class Resized(nn.Module):
    """Its branches are one convolution, at a size that it is told."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, tokens, size):
        image = tokens.transpose(1, 2).view(len(tokens), 4, *size)
        return (self.conv(image) + image).flatten(2).transpose(1, 2)


class Untraceable(nn.Module):
    """Tells its child the size, in code that asks for values."""

    def __init__(self):
        super().__init__()
        self.child = Resized()

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return self.child(x.flatten(2).transpose(1, 2), x.shape[2:])


def test_what_untraced_code_calls_with_options_takes_others_still():
    model = Untraceable().double().eval()
    folded = fold(model, torch.randn(2, 4, 6, 6, dtype=torch.float64))
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), atol=1e-12)
