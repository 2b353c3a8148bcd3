"""Scales and shifts that are moved to a layer, past what stands between."""

import copy

import pytest
import torch
from call_tape import executed
from torch import nn
from truth import calibrate, relative_error

from repblocks.folding.fold import fold, multiply_adds
from repblocks.folding.fold_report import Reason

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Code(nn.Module):
    """Some modules and the code that calls them."""

    def __init__(self, code, **modules):
        super().__init__()
        self.code = code
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.code(self, x)


def folded_exactly(model, *shape, **options):
    x = torch.randn(*shape, dtype=torch.float64)
    calibrate(model.double(), x, x)
    before = copy.deepcopy(model)
    result = fold(model, x, **options)
    other = torch.randn(*shape, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(result(other), before(other)) < EXACT
    return result


def count(model, *classes):
    return sum(isinstance(module, classes) for module in model.modules())


@pytest.mark.parametrize("between", [[nn.Flatten()], [nn.Dropout(), nn.Flatten(), nn.Dropout()]])
def test_a_norm_passes_a_flattening_to_the_head(between):
    layers = [nn.ReLU(), nn.BatchNorm2d(4), *between, nn.Linear(4 * 6, 5), nn.BatchNorm1d(5)]
    result = folded_exactly(nn.Sequential(*layers), 3, 4, 2, 3)
    assert count(result, nn.BatchNorm1d, nn.BatchNorm2d) == 0
    assert result.fold_report.left == ()


def test_a_norm_behind_a_view_is_folded_into_the_linear_layer_before_it():
    model = Code(
        lambda m, x: m.norm(m.linear(x.movedim(1, -1)).permute(0, 3, 1, 2)).relu(),
        linear=nn.Linear(4, 5),
        norm=nn.BatchNorm2d(5),
    )
    result = folded_exactly(model, 3, 4, 5, 6)
    assert count(result, nn.BatchNorm2d) == 0


def test_norms_of_two_slices_go_back_to_the_layer_though_views_follow():
    def code(m, x):
        first, second = m.conv(x).split([3, 5], dim=1)
        return m.a(first).flatten(2).softmax(-1) @ m.b(second).flatten(2).transpose(1, 2)

    model = Code(code, conv=nn.Conv2d(4, 8, 1), a=nn.BatchNorm2d(3), b=nn.BatchNorm2d(5))
    result = folded_exactly(model, 3, 4, 2, 3)
    assert count(result, nn.BatchNorm2d) == 0
    assert result.fold_report.left == ()


def test_a_norm_goes_on_every_path_to_the_layers_that_take_it_in():
    def code(m, x):
        tokens = m.norm(x).flatten(2).transpose(1, 2)
        fewer = m.pool(tokens.transpose(1, 2))
        fewer = m.second(fewer).transpose(1, 2)
        return m.q(tokens).softmax(-1).sum(1) + (m.k(fewer) * m.v(fewer).relu()).sum(1)

    linear = {name: nn.Linear(4, 5) for name in "qkv"}
    norms = {"norm": nn.BatchNorm2d(4), "second": nn.BatchNorm1d(4)}
    result = folded_exactly(Code(code, **norms, pool=nn.AvgPool1d(3), **linear), 3, 4, 2, 3)
    assert count(result, nn.BatchNorm1d, nn.BatchNorm2d) == 0
    assert count(result, nn.Linear) == 3


def test_a_norm_stays_where_one_path_comes_to_no_layer():
    def code(m, x):
        tokens = m.norm(x)
        return m.layer(m.pool(tokens)).sum() + tokens.relu()

    modules = {"norm": nn.BatchNorm2d(4), "pool": nn.AvgPool2d(2), "layer": nn.Conv2d(4, 5, 1)}
    result = folded_exactly(Code(code, **modules), 3, 4, 4, 6)
    assert count(result, nn.BatchNorm2d) == 1
    (left,) = result.fold_report.left
    assert left.reason == "another reader needs the unfolded value"


def beside(first, second):
    return torch.cat([first.relu().flatten(1), second.relu().flatten(1)], dim=1)


AVERAGES = {
    "mean": lambda x: x.mean((2, 3)),
    "adaptive pool": lambda x: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
    "pool in ceil mode": lambda x: nn.functional.avg_pool2d(x, 3, 2, ceil_mode=True).mean((2, 3)),
    "pool": lambda x: nn.functional.avg_pool2d(x, 2, 2, 1, False, False).mean((-1, -2)),
    "mean of tokens": lambda x: x.flatten(2).transpose(1, 2).mean(1),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_a_norm_passes_averages_beside_a_layer(name):
    def code(m, x):
        y = m.norm(x.relu())
        return beside(m.conv(y), m.head(AVERAGES[name](y)))

    modules = {"norm": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 5, 3), "head": nn.Linear(4, 2)}
    model = Code(code, **modules).eval()
    result = folded_exactly(model, 3, 4, 6, 5)
    x = torch.zeros(3, 4, 6, 5, dtype=torch.float64)
    report = result.fold_report
    assert report.macs_before == multiply_adds(model, x) == 4 * 30 + 5 * 12 * 36 + 2 * 4
    assert report.macs_after == multiply_adds(result, x) == 5 * 12 * 36 + 2 * 4
    assert count(result, nn.BatchNorm2d) == 0
    assert result.fold_report.left == ()


def test_a_norm_passes_a_flattening_beside_a_layer():
    def code(m, x):
        y = m.norm(x.relu())
        return beside(m.conv(y), m.head(y.flatten(1)))

    modules = {"norm": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 5, 3), "head": nn.Linear(80, 2)}
    result = folded_exactly(Code(code, **modules), 3, 4, 4, 5)
    assert count(result, nn.BatchNorm2d) == 0
    assert result.fold_report.left == ()


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(2), nn.AvgPool2d(3, 2, ceil_mode=True)])
def test_a_norm_goes_back_past_an_average_to_the_layer(pool):
    model = Code(
        lambda m, x: m.norm(m.pool(m.conv(x))).relu(),
        conv=nn.Conv2d(4, 5, 3),
        pool=pool,
        norm=nn.BatchNorm2d(5),
    )
    result = folded_exactly(model, 3, 4, 6, 5)
    assert count(result, nn.BatchNorm2d) == 0
    assert result.fold_report.left == ()


def test_a_norm_goes_back_past_a_global_mean_to_the_layer():
    model = Code(
        lambda m, x: m.norm(m.conv(x).mean((2, 3))).relu(),
        conv=nn.Conv2d(4, 5, 3),
        norm=nn.BatchNorm1d(5),
    )
    assert count(folded_exactly(model, 3, 4, 6, 5), nn.BatchNorm1d) == 0


def test_an_average_of_what_has_no_batch_is_not_passed():
    # The pool takes the three axes for channels, height and width.
    model = Code(
        lambda m, x: m.pool(m.norm(x.relu())).relu(),
        norm=nn.BatchNorm1d(4),
        pool=nn.AdaptiveAvgPool2d(1),
    )
    result = folded_exactly(model, 3, 4, 6)
    assert count(result, nn.BatchNorm1d) == 1


@pytest.mark.parametrize(
    "average",
    [
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, divisor_override=4),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False, divisor_override=4),
    ],
)
def test_a_norm_does_not_pass_windows_whose_weights_do_not_sum_to_one(average):
    def code(m, x):
        y = m.norm(x.relu())
        return beside(m.conv(y), m.layer(m.average(y)))

    layers = {"conv": nn.Conv2d(4, 5, 1), "layer": nn.Conv2d(4, 5, 1)}
    model = Code(code, norm=nn.BatchNorm2d(4), average=average, **layers)
    assert count(folded_exactly(model, 3, 4, 7, 6), nn.BatchNorm2d) == 1


SIZE_DEPENDENT = {
    "squeeze": (lambda m, x: m.linear(m.norm(x).squeeze()), (3, 4, 1, 1), (3, 4, 4, 4)),
    "squeeze of an axis": (
        lambda m, x: m.linear(m.norm(x).squeeze(-1).squeeze(-1)),
        (3, 4, 1, 1),
        (2, 4, 5, 4),
    ),
    "transposed and back": (
        lambda m, x: m.conv(m.norm(x).transpose(1, 2).reshape(x.shape)),
        (3, 4, 1, 1),
        (3, 4, 5, 4),
    ),
    "several positions in a row": (
        lambda m, x: m.row(m.norm(x).permute(0, 2, 3, 1).reshape(x.shape[0], 24, -1)),
        (3, 4, 2, 3),
        (3, 4, 4, 3),
    ),
}


@pytest.mark.parametrize("name", SIZE_DEPENDENT)
def test_what_holds_at_the_size_of_the_example_alone_is_not_folded_in(name):
    code, shape, other = SIZE_DEPENDENT[name]
    layers = {"linear": nn.Linear(4, 4), "conv": nn.Conv2d(4, 5, 1), "row": nn.Conv1d(24, 5, 1)}
    model = Code(code, norm=nn.BatchNorm2d(4), **layers)
    result = folded_exactly(model, *shape)
    x = torch.randn(*other, dtype=torch.float64)
    assert relative_error(result(x), model(x)) < EXACT
    assert count(result, nn.BatchNorm2d) == 1


def test_a_squeeze_that_depends_on_the_size_is_named_as_the_reason():
    model = Code(
        lambda m, x: m.linear(m.norm(x.relu()).squeeze()),
        norm=nn.BatchNorm2d(4),
        linear=nn.Linear(4, 4),
    )
    (left,) = folded_exactly(model, 3, 4, 1, 1).fold_report.left
    assert left.reason == "opaque"
    assert left.detail == "A squeeze that does something else at another size of the input."


@pytest.mark.parametrize(
    "pooled",
    [
        lambda y: nn.functional.adaptive_avg_pool2d(y, 1).squeeze(-1).squeeze(-1),
        lambda y: nn.functional.adaptive_avg_pool2d(y, (1, 1)).relu().squeeze(),
        lambda y: y.mean((2, 3), keepdim=True).squeeze(),
        lambda y: y.mean(2, keepdim=True).mean(3).squeeze(2),
        lambda y: y.mean((2, 3)).unsqueeze(2).squeeze(2),
    ],
)
def test_a_squeeze_of_what_is_one_at_every_size_is_passed(pooled):
    model = Code(
        lambda m, x: m.second(m.first(pooled(x))),
        first=nn.Linear(4, 3),
        second=nn.Linear(3, 4),
    )
    shape = (3, 4, 5, 6)
    norm = Code(
        lambda m, x: m.linear(m.norm(pooled(x.relu()).unsqueeze(2)).squeeze(2)),
        norm=nn.BatchNorm1d(4),
        linear=nn.Linear(4, 5),
    )
    assert count(folded_exactly(norm, *shape), nn.BatchNorm1d) == 0
    folded_exactly(model, *shape)


BEHIND = {
    "a pool and a flattening": lambda m, x: m.flat(m.pool(m.first(x)).flatten(1)),
    "two pools": lambda m, x: m.norm(
        m.pool(nn.functional.avg_pool2d(m.first(x), 2, ceil_mode=True))
    ),
    "a pool of a sum": lambda m, x: m.norm(m.pool(m.first(x) + m.second(x))),
    "a pool of a concatenation": lambda m, x: m.both(
        m.pool(torch.cat([m.first(x) - m.second(x), m.second(x.relu())], dim=1))
    ),
    "new axes": lambda m, x: m.norm(m.first(x).mean((2, 3))[:, :, None, None]),
    "new axes after an ellipsis": lambda m, x: m.norm(
        m.pool(m.first(x)).flatten(1)[..., None, None]
    ),
}


@pytest.mark.parametrize("name", BEHIND)
def test_a_norm_goes_back_through_a_chain_to_the_layers_that_take_it_in(name):
    modules = {
        "first": nn.Conv2d(4, 5, 3),
        "second": nn.Conv2d(4, 5, 3),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.BatchNorm1d(5),
        "norm": nn.BatchNorm2d(5),
        "both": nn.BatchNorm2d(10),
    }
    model = Code(lambda m, x: BEHIND[name](m, x).relu(), **modules)
    result = folded_exactly(model, 3, 4, 8, 7)
    x = torch.randn(3, 4, 8, 7, dtype=torch.float64)
    assert executed(result, x)["norms"] == 0
    assert not [one for one in result.fold_report.left if one.reason != Reason.UNUSED]


def test_a_norm_that_no_layer_takes_in_at_the_end_of_a_chain_stays_where_it_was():
    def code(m, x):
        return m.norm(m.pool(torch.cat([m.first(x), x.relu()], dim=1)).flatten(1)).relu()

    modules = {"first": nn.Conv2d(4, 5, 1), "pool": nn.AdaptiveAvgPool2d(1)}
    result = folded_exactly(Code(code, **modules, norm=nn.BatchNorm1d(9)), 3, 4, 5, 6)
    assert isinstance(result.norm, nn.BatchNorm1d)
    assert [one.site for one in result.fold_report.left] == ["norm"]
