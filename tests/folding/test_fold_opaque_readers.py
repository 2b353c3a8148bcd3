"""What code that cannot be traced calls or reads by itself stays as it is; the rest is folded."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.folding.fold import fold
from repblocks.folding.fold_report import Reason

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Branches(nn.Module):
    """A block of two branches."""

    def __init__(self):
        super().__init__()
        self.conv, self.one = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x) + self.one(x))


class Opaque(nn.Module):
    """Control flow on values around some code, and a part that is called as a whole besides."""

    def __init__(self, code, stem=None):
        super().__init__()
        self.stem = stem or nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.rest = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.code = code

    def forward(self, x):
        y = self.rest(self.stem(x)) if x.sum() > -1e9 else x
        return y + self.code(self, x)


def image(*size):
    return torch.randn(*(size or (2, 4, 8, 8)), dtype=torch.float64)


def folded_exactly(model):
    x = image()
    calibrate(model.double(), x, x)
    before = copy.deepcopy(model)
    result = fold(model, x)
    with torch.no_grad():
        for value in (x, image(3, 4, 9, 11), image(1, 4, 5, 7)):
            assert relative_error(result(value), before(value)) < EXACT
    return result


def left_of(result):
    return {left.site: left for left in result.fold_report.left}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (lambda m, x: m.stem[0](x), "Other code looks into stem."),
        (lambda m, x: m.stem[1](x), "It is called several times."),
        (
            lambda m, x: functional.conv2d(x, m.stem[0].weight, padding=1),
            "Other code looks into stem.",
        ),
        (lambda m, x: x - m.stem[1].running_mean[:, None, None], "Other code looks into stem."),
    ],
)
def test_a_part_of_a_stem_that_opaque_code_uses_by_itself(code, why):
    result = folded_exactly(Opaque(code))
    assert isinstance(result.stem[1], nn.BatchNorm2d)
    assert isinstance(result.rest[1], nn.Identity)
    left = left_of(result)
    assert set(left) == {"", "stem.1"}
    assert (left["stem.1"].reason, left["stem.1"].detail) == (Reason.OTHER_READER, why)


def test_a_part_by_name_that_opaque_code_calls_by_itself():
    result = folded_exactly(Opaque(lambda m, x: m.stem.conv(x), Branches()))
    assert isinstance(result.stem.norm, nn.BatchNorm2d)
    assert isinstance(result.rest[1], nn.Identity)
    assert left_of(result)["stem.norm"].reason is Reason.OTHER_READER


def test_a_block_of_a_stem_that_opaque_code_calls_by_itself_is_folded():
    stem = nn.Sequential(Branches(), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    result = folded_exactly(Opaque(lambda m, x: m.stem[0](x), stem))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in result.modules()) == 0
    assert sum(isinstance(m, nn.Conv2d) for m in result.modules()) == 3
    assert set(left_of(result)) == {""}


def test_opaque_code_in_a_shared_module_that_does_something_else_in_each_call():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            return self.stem(x) if x.mean() > 50 else self.stem[0](x)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(Sometimes(), nn.ReLU())

        def forward(self, x):
            return self.part(x + 1e3) * self.part(x - 1e3)

    result = folded_exactly(Twice())
    assert isinstance(result.part[0].stem[1], nn.BatchNorm2d)
    assert left_of(result)["part.0.stem.1"].reason is Reason.OTHER_READER
