"""Folding any module: what is folded, what is left, and what a folded model can do."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from truth import calibrate, relative_error

from repblocks.folding.fold import explain, fold, multiply_adds
from repblocks.folding.fold_report import Reason

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def ready(model, *shape):
    model = model.double()
    return calibrate(model, image(*shape), image(*shape))


def folded_exactly(model, *shape):
    x = image(*shape)
    with torch.no_grad():
        before = copy.deepcopy(model.state_dict())
        truth = model(x)
        result = fold(model, x)
        assert relative_error(result(x), truth) < EXACT
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert result.fold_report.verification.passed
    return result


def count(model, *classes):
    return sum(isinstance(module, classes) for module in model.modules())


class Branches(nn.Module):
    """Three normalised branches, an activation in place, and a way to be called otherwise."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1)])
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.name = "kept"

    def forward(self, x, scale=1.0):
        total = 0
        for conv, norm in zip(self.convs, self.norms, strict=False):
            total += norm(conv(x))
        return functional.relu(total + self.norms[2](x) * scale, inplace=True)


class Standardized(nn.Conv2d):
    """Weight standardisation: arithmetic on weights in the code of forward."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Mixed(nn.Module):
    """A norm over a concatenation of layers that read different things."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x):
        return self.norm(torch.cat([self.one(x.relu()), self.two(x)], dim=1)).sigmoid()


class Shuffled(nn.Module):
    """A channel shuffle between grouped convolutions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1, groups=2, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.first(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.norm(self.second(x)).relu()


class Heads(nn.Module):
    """A norm before a head, and the mean of two heads."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm(x)
        return (self.one(x) + self.two(x)) / 2


class Branching(nn.Module):
    """Control flow on values outside, a block inside."""

    def __init__(self):
        super().__init__()
        self.block = Branches()

    def forward(self, x):
        y = self.block(x)
        return y if y.sum() > 0 else -y


class Stale(nn.Module):
    """A value that is changed in place between two readers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        y.relu_()
        return self.other(y) + z


def test_branches_become_one_convolution_and_the_activation_stays():
    model = ready(Branches(), 2, 4, 6, 7)
    result = folded_exactly(model, 2, 4, 6, 7)
    assert count(result, nn.Conv2d) == 1
    assert count(result, nn.BatchNorm2d) == 0
    assert result.name == "kept"
    report = result.fold_report
    assert report.macs_after == 4 * 4 * 9 * 42
    assert report.parameters_after == sum(p.numel() for p in result.parameters())
    assert not report.left


@pytest.mark.parametrize("module", [Standardized(4, 6, 3), Mixed(), Shuffled()], ids=repr)
def test_norms_disappear(module):
    model = nn.Sequential(module, nn.BatchNorm2d(6), nn.ReLU())
    model = ready(model if isinstance(module, Standardized) else module, 3, 4, 5, 6)
    result = folded_exactly(model, 3, 4, 5, 6)
    assert count(result, nn.BatchNorm2d) == 0
    assert not result.fold_report.left


def test_a_norm_and_two_heads_are_one_linear_layer():
    result = folded_exactly(ready(Heads(), 8, 6), 5, 6)
    assert type(result) is nn.Linear
    assert result.fold_report.macs_after == 18


def test_a_block_below_control_flow_is_folded_and_the_rest_reported():
    result = folded_exactly(ready(Branching(), 2, 4, 5, 5), 2, 4, 5, 5)
    assert count(result, nn.BatchNorm2d) == 0
    (left,) = result.fold_report.left
    assert left.reason is Reason.OPAQUE
    assert "control flow" in left.detail


def test_a_changed_value_is_not_folded():
    result = folded_exactly(ready(Stale(), 2, 4, 5, 5), 2, 4, 5, 5)
    assert [left.reason for left in result.fold_report.left] == [Reason.OTHER_READER]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()], Reason.NONLINEARITY),
        ([nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)], Reason.PADDING),
        ([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)], Reason.STATISTICS),
    ],
)
def test_what_stays_has_its_reason(layers, reason):
    model = nn.Sequential(*layers).double().eval()
    for norm in model:
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean += 0.5
    x = image(2, 4, 6, 6)
    result = fold(model, x)
    assert torch.equal(result(x), model(x))
    assert [left.reason for left in result.fold_report.left] == [reason]


def test_a_layer_with_a_second_caller_stays_for_that_one():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    model = ready(nn.Sequential(conv, norm, nn.ReLU(), conv), 2, 4, 5, 5)
    report = folded_exactly(model, 2, 4, 5, 5).fold_report
    assert (report.parameters_before, report.parameters_after) == (28, 40)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_take_in_norms(groups):
    up = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=groups, bias=groups == 1)
    model = ready(nn.Sequential(up, nn.BatchNorm2d(6), nn.ReLU()), 2, 4, 5, 6)
    result = folded_exactly(model, 2, 4, 5, 6)
    assert [type(layer) for layer in result] == [nn.ConvTranspose2d, nn.Identity, nn.ReLU]
    report = result.fold_report
    assert not report.left
    assert report.macs_after == 4 * 30 * 54 // groups
    assert multiply_adds(result, torch.randn(1, 4, 5, 6).double()) == report.macs_after
    assert report.macs_before == report.macs_after + 6 * 12 * 14


def up():
    return nn.ConvTranspose2d(4, 6, 3)


@pytest.mark.parametrize(
    "layers",
    [
        [parametrizations.weight_norm(up()), nn.BatchNorm2d(6)],
        [up(), nn.Dropout(), nn.BatchNorm2d(6)],
        [up(), nn.BatchNorm2d(6), nn.Identity(), nn.BatchNorm2d(6)],
    ],
    ids=["parametrized", "through a dropout", "two norms"],
)
def test_transposed_convolutions_take_in_all_that_follows(layers):
    result = folded_exactly(ready(nn.Sequential(*layers, nn.ReLU()), 2, 4, 5, 6), 2, 4, 5, 6)
    assert type(result[0]) is nn.ConvTranspose2d
    assert count(result, nn.BatchNorm2d) == 0
    assert not result.fold_report.left


def test_hooks_are_barriers():
    hooked = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), 2, 4, 5, 5)
    hooked[0].register_forward_hook(lambda _m, _x, y: 2 * y)
    result = folded_exactly(hooked, 2, 4, 5, 5)
    assert {left.reason for left in result.fold_report.left} >= {Reason.OPAQUE}


def test_parametrizations_are_baked():
    conv = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    result = folded_exactly(ready(nn.Sequential(conv, nn.BatchNorm2d(4)), 2, 4, 6, 6), 2, 4, 6, 6)
    assert type(result[0]) is nn.Conv2d


def costly_pairs():
    thin = nn.Sequential(nn.Conv2d(16, 2, 1, bias=False), nn.Conv2d(2, 16, 1))
    separable = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 1))
    return [thin, separable, nn.Sequential(nn.Linear(16, 2), nn.Linear(2, 16))]


def test_low_rank_and_separable_layers_stay():
    for model, shape in zip(costly_pairs(), [(8, 8), (8, 8), (16,)], strict=True):
        report = explain(model.double(), image(1, 16, *shape))
        assert report.folded == ()


def test_low_rank_and_separable_layers_are_folded_at_a_stated_price_when_asked_for():
    for model, shape in zip(costly_pairs(), [(8, 8), (8, 8), (16,)], strict=True):
        x = image(2, 16, *shape)
        model.double().eval()
        result = fold(model, x, fewest_layers=True)
        assert relative_error(result(x), model(x)) < EXACT
        assert count(result, nn.Conv2d, nn.Linear) == 1
        (one,) = result.fold_report.folded
        assert one.macs_after > one.macs_before
        assert result.fold_report.macs_after > result.fold_report.macs_before
        assert explain(model, x, fewest_layers=True).folded == result.fold_report.folded


def test_without_an_example_chains_are_folded_and_nothing_is_verified():
    model = ready(nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()), 2, 4, 6, 6)
    result = fold(model)
    x = image(2, 4, 6, 6)
    assert relative_error(result(x), model(x)) < EXACT
    assert type(result[1]) is nn.Identity
    assert "verified: no" in result.fold_report.to_markdown()


def test_a_folded_model_is_a_model_like_any_other():
    model = ready(nn.Sequential(Branches(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)), 2, 4, 8, 8)
    x = image(2, 4, 8, 8)
    result = folded_exactly(model, 2, 4, 8, 8)
    truth = result(x)
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert torch.equal(twin(x), truth)
    twin = fold(model, x)
    twin.load_state_dict({k: v + 1 for k, v in result.state_dict().items()})
    assert not torch.equal(twin(x), truth)
    twin.load_state_dict(result.state_dict())
    assert torch.equal(twin(x), truth)
    assert relative_error(copy.deepcopy(result).float()(x.float()).double(), truth) < 1e-5
    result.train()(x).sum().backward()
    assert all(p.grad is not None for p in result.parameters())
    exported = torch.export.export(result.eval(), (x,)).module()
    assert relative_error(exported(x), truth) < EXACT
    assert fold(result, x).fold_report.folded == ()


def test_the_plan_is_the_same_on_every_run_and_explain_tells_it():
    model = ready(Mixed(), 2, 4, 6, 6)
    x = image(2, 4, 6, 6)
    plans = [explain(model, x).to_dict() for _ in range(3)]
    assert plans[0] == plans[1] == plans[2]
    folded = fold(model, x).fold_report.to_dict()
    assert {**folded, "verification": None} == plans[0]


def test_names_and_features_of_a_network_stay():
    model = ready(timm.create_model("resnet10t", num_classes=7), 4, 3, 64, 64)
    result = folded_exactly(model, 2, 3, 64, 64)
    kept = {path for path, _ in result.named_modules()}
    assert {path for path, _ in model.named_modules()} >= kept
    assert type(result) is type(model)
    x = image(1, 3, 64, 64)
    features = result.forward_intermediates(x, intermediates_only=True)
    for ours, theirs in zip(
        features, model.forward_intermediates(x, intermediates_only=True), strict=True
    ):
        assert relative_error(ours, theirs) < EXACT


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(3, 1, 1)])
def test_a_norm_passes_an_average_to_the_layer_behind_it(pool):
    """But where zeros are averaged in, its shift does not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.ReLU(), nn.BatchNorm2d(4), nn.Identity(), pool, nn.Conv2d(4, 3, 1), nn.Tanh())
    )
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    calibrate(model.double(), x)
    folded = fold(model, x)
    is_left = pool.padding if isinstance(pool, nn.AvgPool2d) else 0
    assert isinstance(folded[1], nn.BatchNorm2d if is_left else nn.Identity)
    assert type(folded[3]) is type(pool)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-12


def test_a_norm_passes_views_and_a_mean_to_the_heads():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.tokens = nn.Linear(4, 5)
            self.last = nn.BatchNorm2d(5)
            self.one, self.two = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            y = self.tokens(self.norm(x.relu()).flatten(2).transpose(1, 2)).relu()
            y = self.last(y.transpose(1, 2).unflatten(2, (2, 3))).mean((2, 3))
            return (self.one(y) + self.two(y)) / 2

    torch.manual_seed(0)
    model = Heads().double()
    x = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    calibrate(model, x)
    folded = fold(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert sum(isinstance(m, nn.Linear) for m in folded.modules()) == 2
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-12


def test_a_module_may_change_the_list_it_is_given():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(
                nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2)
            )

        def forward(self, xs):
            for i, branch in enumerate(self.branches):
                xs[i] = branch(xs[i])
            return xs

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            first, second = self.inner([x, x.relu()])
            return first + second

    model = Outer().double()
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    calibrate(model, x)
    folded = fold(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-12


def test_what_is_changed_in_place_and_read_under_its_old_name_is_changed():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

        def forward(self, x):
            x = x.relu()
            y = self.norm(self.conv(x))
            z = y
            z += x
            return y

    torch.manual_seed(0)
    model, x = InPlace().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    calibrate(model, x)
    with torch.no_grad():
        assert relative_error(fold(model, x)(x), model(x)) < 1e-12


def test_what_is_returned_stays_as_it_is():
    class Both(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.norm = layer, nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.layer(x)
            return y, self.norm(y)

    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    for layer in (nn.ConvTranspose2d(2, 3, 3, 2), nn.Conv2d(2, 3, 3)):
        model = Both(layer).double()
        calibrate(model, x)
        assert isinstance(fold(model, x).norm, nn.BatchNorm2d)


def test_what_another_layer_reads_is_not_emptied():
    """One reader is a layer of its own, another is composed with the first, and reads before it."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.wide = nn.Conv1d(3, 6, 1, padding=2, padding_mode="circular")
            self.narrow = nn.Sequential(nn.Conv1d(6, 6, 1, bias=False), nn.Conv1d(6, 2, 1))
            self.other = nn.Conv1d(6, 2, 3, padding=1, padding_mode="reflect")

        def forward(self, x):
            y = self.wide(self.norm(x.tanh()))
            return self.narrow(y) * self.other(y).relu(), y

    torch.manual_seed(0)
    x = torch.randn(3, 3, 4, dtype=torch.float64)
    model = Shared().double()
    calibrate(model, x)
    folded = fold(model, x, verify=False)
    with torch.no_grad():
        for found, truth in zip(folded(x), model(x), strict=True):
            assert relative_error(found, truth) < 1e-12


def test_a_norm_that_is_never_called_is_said_to_be_so():
    class Spare(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
            self.spare = nn.BatchNorm2d(4)

        def forward(self, x):
            return self[1](self[0](x)).relu()

    result = fold(Spare(), torch.randn(2, 4, 5, 5))
    assert [(left.site, left.reason) for left in result.fold_report.left] == [
        ("spare", Reason.UNUSED)
    ]


def test_of_a_norm_in_code_that_was_not_traced_nobody_knows_whether_it_is_called():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(x).relu() if x.sum() < 1e9 else x

    result = fold(nn.Sequential(nn.Conv2d(4, 4, 1), Hidden()), torch.randn(2, 4, 5, 5))
    assert {left.reason for left in result.fold_report.left} == {Reason.OPAQUE}
