"""Modules that are called several times are folded once, for all their calls."""

import copy

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks.folding.fold import fold

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Tower(nn.Module):
    """A convolution with its norm and a sum of two branches, which becomes a graph."""

    def __init__(self, channels=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())
        self.one = nn.Conv2d(channels, channels, 1)
        self.three = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x, scale=1.0):
        x = self.stem(x)
        return self.norm(self.one(x) + self.three(x) * scale).relu()


class Pair(nn.Module):
    """One tower that sees two images, as in metric learning and tracking."""

    def __init__(self, tower, code):
        super().__init__()
        self.tower = tower
        self.code = code

    def forward(self, x, y):
        return self.code(self, x, y)


class Untraceable(nn.Module):
    """A tower in a loop over as many levels as an image has rows to spare."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, x):
        found = []
        while x.shape[-1] > 6:
            found.append(self.tower(x))
            x = x[..., ::2]
        return found


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def images(*widths):
    return tuple(torch.randn(2, 3, 8, width, dtype=torch.float64) for width in widths)


class Unpacked(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(*inputs)


def folded_exactly(model, inputs, others):
    calibrate(Unpacked(model.double()), inputs, inputs)
    before = copy.deepcopy(model)
    result = fold(model, inputs)
    with torch.no_grad():
        found, truth = result(*others), before(*others)
    for one, other in zip(*([f] if torch.is_tensor(f) else f for f in (found, truth)), strict=True):
        assert relative_error(one, other) < EXACT
    return result


def test_a_tower_that_sees_two_images_is_folded_once():
    model = Pair(Tower(), lambda m, x, y: m.tower(x).mean() - m.tower(y).mean((0, 1)))
    result = folded_exactly(model, images(8, 12), images(10, 9))
    assert norms(result) == 0
    assert len([m for m in result.modules() if isinstance(m, nn.Conv2d)]) == 2
    assert result.fold_report.left == ()


def test_a_tower_in_code_that_cannot_be_traced_is_folded_once():
    result = folded_exactly(Untraceable(Tower()), images(16), images(26))
    assert norms(result) == 0
    assert [left.site for left in result.fold_report.left] == [""]


def test_calls_that_differ_fold_what_a_tower_calls():
    model = Pair(Tower(), lambda m, x, y: m.tower(x) + m.tower(y, 0.5))
    result = folded_exactly(model, images(8, 8), images(9, 9))
    assert isinstance(result.tower.stem[1], nn.Identity)
    reasons = {left.site: left.detail for left in result.fold_report.left}
    assert reasons == {
        "tower": "It is called in ways that differ.",
        "tower.norm": "It was not traced.",
    }


def test_a_part_that_is_called_by_itself_in_some_calls():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = Tower().stem

        def forward(self, x, whole):
            return self.stem(x).mean() if whole else self.stem[0](x).mean()

    model = Pair(Sometimes(), lambda m, x, y: m.tower(x, True) * m.tower(y, False))
    result = folded_exactly(model, images(8, 8), images(9, 9))
    assert norms(result) == 1


def test_a_tower_of_two_names_is_folded_under_both():
    model = Pair(nn.Sequential(Tower().stem), lambda m, x, y: m.tower(x).mean() + m.other(y))
    model.other = model.tower
    result = folded_exactly(model, images(8, 12), images(10, 9))
    assert norms(result) == 0
    assert result.other is result.tower


def test_a_graph_is_not_made_of_a_tower_of_two_names():
    model = Pair(Tower(), lambda m, x, y: m.tower(x).mean() + m.other(y))
    model.other = model.tower
    result = folded_exactly(model, images(8, 12), images(10, 9))
    assert norms(result) == 0
    assert len([m for m in result.modules() if isinstance(m, nn.Conv2d)]) == 3
    assert result.other is result.tower


def test_a_norm_behind_a_tower_that_is_called_twice_says_so():
    tower = nn.Sequential(nn.Conv2d(3, 4, 3))
    model = Pair(tower, lambda m, x, y: m.norm(m.tower(x)) + m.tower(y).mean())
    model.norm = nn.BatchNorm2d(4)
    result = folded_exactly(model, images(8, 12), images(10, 9))
    (left,) = result.fold_report.left
    assert left.site == "norm"
    assert left.reason == "another reader needs the unfolded value"


def test_calls_of_other_ranks_keep_a_tower():
    tower = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 5))
    model = Pair(tower, lambda m, x, y: m.tower(x).sum() + m.tower(y)).double()
    x, y = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, 5, dtype=torch.float64)
    tower[0].running_mean.normal_()
    result = fold(model.eval(), (x, y), verify=False)
    assert torch.equal(result(x, y), model(x, y))


def test_towers_in_towers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Tower()

        def forward(self, x):
            return self.part(x) + self.part(x.flip(-1))

    model = Pair(Twice(), lambda m, x, y: m.tower(x) * m.tower(y))
    result = folded_exactly(model, images(8, 8), images(9, 9))
    assert norms(result) == 0


class Block(nn.Module):
    """A block of three branches."""

    def __init__(self):
        super().__init__()
        self.three, self.one = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x, scale=1.0):
        return (self.three(x) + self.one(x) + self.norm(x)).relu() * scale


def with_block(block, code):
    model = Pair(Tower(), code)
    model.tower.stem = nn.Sequential(block, *model.tower.stem)
    return model


def test_a_block_that_is_called_directly_and_inside_a_tower_is_folded_once():
    model = with_block(
        Block(),
        lambda m, x, y: m.tower(x).mean() + m.tower(y).mean() + m.tower.stem[0](x).mean(),
    )
    result = folded_exactly(model, images(8, 12), images(10, 9))
    assert norms(result.tower.stem) == 0
    assert len([m for m in result.tower.stem[0].modules() if isinstance(m, nn.Conv2d)]) == 1
    assert result.fold_report.left == ()


def test_a_block_under_two_names_is_folded_where_its_layers_stand():
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    model = with_block(
        block, lambda m, x, y: m.tower(x).mean() + m.tower(y).mean() + m.block(x).mean()
    )
    model.block = block
    result = folded_exactly(model, images(8, 12), images(10, 9))
    assert norms(result) == 0
    assert result.block is result.tower.stem[0]
    assert result.fold_report.left == ()


def test_a_block_in_two_programs_whose_calls_differ_stays():
    model = with_block(
        Block(),
        lambda m, x, y: m.tower(x).mean() + m.tower(y).mean() + m.tower.stem[0](x, 0.5).mean(),
    )
    result = folded_exactly(model, images(8, 12), images(10, 9))
    assert isinstance(result.tower.stem[0].norm, nn.BatchNorm2d)
    reasons = {left.site: left.detail for left in result.fold_report.left}
    assert reasons["tower.stem.0"] == "It is called in ways that differ."
