"""The checker of reasons itself: it accepts what is true, and only that."""

import copy

import pytest
import torch
from call_tape import executed
from left_norms import false_reasons
from torch import nn

from repblocks.folding.fold import fold
from repblocks.folding.fold_report import FoldReport, LeftAlone, Reason


class Shortcut(nn.Module):
    """Adds a BatchNorm of a value to the value."""

    def __init__(self, first):
        super().__init__()
        self.first, self.norm = first, nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.first(x)
        return torch.relu(self.norm(y) + y)


class Branching(nn.Sequential):
    """Cannot be traced."""

    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


def conv(padding=0, kernel_size=1, **options):
    return nn.Conv2d(3, 3, kernel_size, padding=padding, **options)


NORM = nn.BatchNorm2d(3)
SHARED = nn.Sequential(conv(), nn.BatchNorm2d(3))


class Product(nn.Module):
    """A norm of a product of activations that lost an axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm((y.unsqueeze(-2) @ y.unsqueeze(-1)).squeeze(-2)).relu()


CASES = {
    "between activations": (nn.Sequential(nn.ReLU(), NORM, nn.ReLU()), {Reason.NONLINEARITY}),
    "before padding": (
        nn.Sequential(nn.ReLU(), NORM, conv(1, 3)),
        {Reason.NONLINEARITY, Reason.PADDING},
    ),
    "after padding": (
        nn.Sequential(conv(), nn.ZeroPad2d(1), NORM, nn.ReLU()),
        {Reason.NONLINEARITY, Reason.PADDING},
    ),
    "shortcut": (Shortcut(conv()), {Reason.NONLINEARITY, Reason.OTHER_READER, Reason.COST}),
    "before a pool": (
        nn.Sequential(nn.ReLU(), NORM, nn.AvgPool2d(2), nn.ReLU()),
        {Reason.NONLINEARITY},
    ),
    "untraceable": (
        Branching(conv(), NORM, nn.ReLU()),
        {Reason.NONLINEARITY, Reason.OPAQUE},
    ),
    "called twice": (
        nn.Sequential(SHARED, nn.ReLU(), SHARED),
        {Reason.OTHER_READER, Reason.NONLINEARITY},
    ),
    "after a layer over another axis": (
        nn.Sequential(nn.Linear(4, 5), NORM, nn.ReLU()),
        {Reason.NONLINEARITY, Reason.COST},
    ),
    "after a squeezed product": (Product(), {Reason.NONLINEARITY}),
    "no statistics": (
        nn.Sequential(conv(), nn.BatchNorm2d(3, track_running_stats=False)),
        {Reason.STATISTICS},
    ),
}
FOLDABLE = {
    "after a convolution": nn.Sequential(conv(), NORM, nn.ReLU()),
    "after a pool": nn.Sequential(conv(), nn.AvgPool2d(2), NORM, nn.ReLU()),
    "before a convolution": nn.Sequential(nn.ReLU(), NORM, conv(), nn.ReLU()),
    "before reflected padding": nn.Sequential(nn.ReLU(), NORM, conv(1, 3, padding_mode="reflect")),
    "before a pooled head": nn.Sequential(
        nn.ReLU(), NORM, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    ),
    "before a flattened head": nn.Sequential(nn.ReLU(), NORM, nn.Flatten(), nn.Linear(3 * 16, 2)),
    "after a transposed convolution": nn.Sequential(nn.ConvTranspose2d(3, 3, 3), NORM, nn.ReLU()),
}


def refuted(model, reason):
    """Tell whether a report that gives the reason for the only BatchNorm is refuted."""
    model.eval()
    x = torch.randn(2, 3, 4, 4)
    site = next(path for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))
    calls = executed(model, x)["norms"]
    report = FoldReport((), (LeftAlone(site, "BatchNorm2d", reason),) * calls, 0, 0, 0, 0)
    return bool(false_reasons(model, x, report, calls))


@pytest.mark.parametrize("name", CASES)
def test_the_true_reasons_are_accepted_and_no_others(name):
    model, reasons = CASES[name]
    assert {reason for reason in Reason if not refuted(model, reason)} == reasons


@pytest.mark.parametrize("name", FOLDABLE)
@pytest.mark.parametrize("reason", Reason)
def test_no_reason_holds_where_the_norm_could_be_folded(name, reason):
    assert refuted(FOLDABLE[name], reason)


def test_a_norm_without_a_reason_is_named():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval()
    empty = FoldReport((), (), 0, 0, 0, 0)
    found = false_reasons(model, torch.randn(1, 3, 2, 2), empty, 1)
    assert found == ["1 BatchNorms are left, 0 have a reason"]


@pytest.mark.parametrize("name", CASES)
def test_the_fold_gives_a_true_reason(name):
    model, _ = CASES[name]
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = copy.deepcopy(model).double().eval()
    folded = fold(model, x, verify=False)
    assert false_reasons(model, x, folded.fold_report, executed(folded, x)["norms"]) == []
