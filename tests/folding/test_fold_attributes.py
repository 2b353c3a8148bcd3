"""A parent that reads plain data of what it calls finds it on what takes its place."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks.folding.fold import fold

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Branches(nn.Module):
    """Three branches and one activation."""

    def __init__(self, channels=4):
        super().__init__()
        self.three = nn.Conv2d(channels, channels, 3, padding=1)
        self.one = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.three(x) + self.one(x) + self.norm(x)


class Sum(nn.Module):
    def forward(self, xs):
        return xs[0] + xs[1]


class Graph(nn.Module):
    """A network that a table describes: each part says where it stands and what it reads."""

    def __init__(self, *parts):
        super().__init__()
        self.model = nn.Sequential(*parts)
        for place, part in enumerate(parts):
            part.i, part.f, part.type = place, -1, type(part).__name__
        self.save = {1}

    def forward(self, x, names=None):
        kept = []
        for part in self.model:
            if part.f != -1:
                x = [x if place == -1 else kept[place] for place in part.f]
            if names is not None:
                names.append(part.type)
            x = part(x)
            kept.append(x if part.i in self.save else None)
        return x


def table():
    norm, conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
    model = Graph(Branches(), nn.ReLU(), Branches(), nn.ReLU(), conv, norm, nn.ReLU(), Sum())
    model.model[-1].f = [-1, 1]
    return model


def image(*size):
    return torch.randn(*(size or (2, 4, 8, 8)), dtype=torch.float64)


def folded_exactly(model, x):
    calibrate(model.double(), x, x)
    result, larger = fold(model, x), image(3, 4, 9, 11)
    for value in (x, larger):
        assert relative_error(result(value), model(value)) < EXACT
    return result


def test_a_network_that_reads_its_parts_plain_data_is_folded():
    model = table()
    result = folded_exactly(model, image())
    assert [type(result.model[i]) for i in (0, 2, 4, 5)] == [nn.Conv2d] * 3 + [nn.Identity]
    assert result.fold_report.left == ()
    assert [(m.i, m.f, m.type) for m in result.model] == [(m.i, m.f, m.type) for m in model.model]
    names = []
    result(image(), names)
    assert names == [m.type for m in model.model]


def test_what_carries_plain_data_can_be_copied_saved_and_exported():
    result, x = folded_exactly(table(), image()), image()
    assert torch.equal(copy.deepcopy(result)(x), result(x))
    result.fold_report = None
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), result(x))
    exported = torch.export.export(result, (x,)).module()
    assert relative_error(exported(x), result(x)) < EXACT
    assert set(result.state_dict()) == {
        f"model.{place}.{name}" for place in (0, 2, 4) for name in ("weight", "bias")
    }


class Reading(nn.Module):
    """Branches, and the code that looks into them."""

    def __init__(self, code, part=None):
        super().__init__()
        self.part, self.code = part or Branches(), code

    def forward(self, x):
        return self.code(self, self.part(x).relu())


class Counting(Branches):
    """Writes down the width that it saw."""

    width = None

    def __init__(self):
        super().__init__()
        self.width, self.seen = 8, []

    def forward(self, x):
        self.width = x.shape[-1]
        return super().forward(x)


class Listing(Counting):
    def forward(self, x):
        self.seen.append(1)
        return Branches.forward(self, x)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (lambda m, x: x * m.part.norm.weight.sum(), None),
        (lambda m, x: x * m.part.one.in_channels, None),
        (lambda m, x: x * len(list(m.part.children())), None),
        (lambda m, x: x.flatten(2) * m.part.width, Counting),
        (lambda m, x: x * (len(m.part.seen) + 1), Listing),
    ],
)
def test_what_is_no_plain_data_keeps_a_part(code, part):
    model, x = Reading(code, part and part()).double(), image()
    calibrate(model, x, x)
    result = fold(copy.deepcopy(model), x, verify=False)
    assert isinstance(result.part.norm, nn.BatchNorm2d)
    (left,) = [one for one in result.fold_report.left if one.site == "part.norm"]
    assert left.reason == "another reader needs the unfolded value"
    assert "looks into part" in left.detail
    other = image(3, 4, 9, 11)
    assert relative_error(result(other), model(other)) < EXACT


def test_names_of_the_new_layer_keep_a_part():
    model = Reading(lambda m, x: x * m.part.stride)
    model.part.stride = 3
    result = folded_exactly(model, image())
    assert isinstance(result.part.norm, nn.BatchNorm2d)


class Gated(nn.Module):
    """A part that becomes a graph: what it computes at once is no module of its own."""

    def __init__(self):
        super().__init__()
        self.three, self.one = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.gain = 2

    def forward(self, x):
        return (self.three(x) + self.one(x)).relu() * x


class Multiplied(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Gated()

    def forward(self, x):
        return self.part(x) * self.part.gain


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_graph_keep_what_is_read_of_it(copied):
    model = Multiplied().double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    folded = fold(model, x)
    assert type(folded.part) is not Gated
    with torch.no_grad():
        assert relative_error(copied(folded)(x), model(x)) < EXACT
    graph = fold(model.part, x)
    assert copied(graph).fold_report == graph.fold_report
