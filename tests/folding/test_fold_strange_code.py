"""Code that no rule foresees, that keeps things, or is compiled, is folded around."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from truth import calibrate, relative_error

import repblocks
from repblocks.errors import RepblocksError
from repblocks.folding.fold import fold

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Code(nn.Module):
    """A norm behind a convolution, and the code that reads it."""

    def __init__(self, code):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.filters = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.code = code

    def forward(self, x):
        return self.code(self, self.norm(self.conv(x)))


@pytest.mark.parametrize(
    "code",
    [
        lambda _, x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda _, x: torch.cat(x.split([1, 3], 1), 1),
        lambda _, x: torch.stack(x.unbind(1), 1).sum(1),
        lambda _, x: torch.stack(x.chunk(2, 1)).mean(0),
        lambda m, x: functional.conv2d(x, m.filters, groups=x.shape[1]),
        lambda m, x: functional.conv2d(x, m.filters, groups=4, stride=x.shape[1] - 2),
        lambda m, x: functional.conv2d(x, m.filters, groups=4, dilation=2, padding="same"),
        lambda m, x: functional.conv2d(x, m.filters, groups=4, padding="valid"),
        lambda _, x: x.mean(axis=(2, 3)),
        lambda _, x: functional.avg_pool2d(x, (2,)),
        lambda m, x: functional.linear(x, m.filters.view(-1)[:8]),
        lambda _, x: torch.add(x, x, alpha=x.shape[1]),
    ],
)
def test_calls_that_no_rule_foresees(code):
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    model = calibrate(Code(code).double(), x, x)
    result = fold(model, x)
    assert isinstance(result.norm, nn.Identity)
    assert relative_error(result(x), model(x)) < EXACT


class Cached(nn.Module):
    """Code that keeps what it made, and lists what it saw."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.cache, self.seen = {}, []

    def forward(self, x):
        if "ones" not in self.cache:
            self.cache["ones"] = x.new_ones(1)
        self.seen.append(x)
        return self.norm(self.conv(x)) * self.cache["ones"]


def test_caches_hold_nothing_of_a_fold():
    x = torch.randn(2, 4, 5, 5)
    model = Cached().eval()
    result = fold(model, x)
    assert (model.cache, model.seen) == ({}, [])
    assert (result.cache, result.seen) == ({}, [])
    assert torch.allclose(result(x), model(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch warns of its own compiler, and in copies of it
def test_compiled_children_and_roots():
    script = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).double().eval())
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double()
    model = nn.Sequential(calibrate(model, x, x), script)
    result = fold(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.modules())
    assert relative_error(result(x), model(x)) < EXACT
    assert torch.equal(fold(script, x)(x), script(x))


def test_graphs_are_folded():
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    model = calibrate(Code(lambda _, x: x.relu()).double(), x, x)
    graph = torch.fx.symbolic_trace(model)
    result = fold(graph, x)
    assert isinstance(result.norm, nn.Identity)
    assert relative_error(result(x), model(x)) < EXACT


def test_a_fold_in_inference_mode():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
        x = torch.randn(2, 4, 5, 5)
        result = fold(model, x)
        assert isinstance(result[1], nn.Identity)
        assert torch.allclose(result(x), model(x), atol=1e-5)


class Merging(nn.Linear):
    """Merges a second weight in place when its mode changes."""

    def __init__(self):
        super().__init__(4, 4)
        self.more, self.is_merged = nn.Parameter(torch.randn(4, 4)), False

    def train(self, mode=True):
        super().train(mode)
        if self.is_merged == mode:
            self.weight.data += -self.more.data if mode else self.more.data
            self.is_merged = not mode
        return self

    def forward(self, x):
        return functional.linear(x, self.weight if self.is_merged else self.weight + self.more)


def test_weights_that_merge_with_the_mode_are_not_changed():
    model = nn.Sequential(Merging(), nn.ReLU()).train()
    before, x = copy.deepcopy(model.state_dict()), torch.randn(3, 4)
    result = fold(model, x)
    assert torch.allclose(result(x), copy.deepcopy(model).eval()(x))
    assert repblocks.verify(model, copy.deepcopy(model), x).passed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def unpacked(x):
    batch, channels, *sizes = x.shape
    return x.reshape(batch, 2, channels // 2, *sizes).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(
    "code",
    [
        lambda _, x: x.view(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
        lambda _, x: unpacked(x),
        lambda _, x: x.new_ones(*x.size()) + x,
        lambda _, x: x.reshape(*x.shape[:2], -1),
        lambda _, x: x.mean([axis for axis in range(len(x.shape)) if axis > 1]),
        lambda _, x: x / math.prod(list(x.shape[-2:])),
        lambda m, x: m.norm(m.conv(x).relu()).view(*x.shape),
    ],
)
@pytest.mark.parametrize("is_inner", [False, True])
def test_code_that_takes_shapes_apart(code, is_inner):
    x, larger = (torch.randn(*s, 4, 8, 8, dtype=torch.float64) for s in ((2,), (3,)))
    larger = torch.cat((larger, larger), -1)
    model = Code(code).double()
    model.norm = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double()
    model = nn.Sequential(model, nn.ReLU()) if is_inner else model
    calibrate(model, x, x)
    result = fold(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.modules())
    assert result.fold_report.left == ()
    for value in (x, larger):
        assert relative_error(result(value), model(value)) < EXACT


class Keeping(nn.Module):
    """Keeps what it computed last."""

    def __init__(self, wrap):
        super().__init__()
        self.conv, self.norm, self.wrap = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), wrap

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        self.last = self.wrap(x)
        return x


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x, {"x": x}]])
def test_tensors_that_a_run_has_left_behind(wrap):
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    model = calibrate(Keeping(wrap).double(), x, x)
    truth = model(x)
    result = fold(model, x)
    assert isinstance(result.norm, nn.Identity)
    assert relative_error(result(x), truth) < EXACT


def test_what_cannot_be_copied_says_so():
    x = torch.randn(2, 4, 8, 8)
    model = Keeping(lambda x: lambda: x).eval()
    model.hidden = type("Holder", (), {})()
    model.hidden.tensor = model(x)
    with pytest.raises(RepblocksError, match="cannot be copied"):
        fold(model, x)


@pytest.mark.filterwarnings("ignore")  # both are old in torch, and in many models
@pytest.mark.parametrize(
    "normalise", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=["weight", "spectral"]
)
@pytest.mark.parametrize("is_run_before", [False, True])
def test_weights_that_hooks_compute(normalise, is_run_before):
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    normalise(model[0])
    calibrate(model.double(), x, x)
    if is_run_before:
        model(x).sum().backward()
    result = fold(model, x)
    assert isinstance(result[3], nn.Identity)
    assert relative_error(copy.deepcopy(result)(x), model(x)) < EXACT
    assert relative_error(result(x), model(x)) < EXACT


def test_a_model_for_several_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # it would move to a GPU
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    model = nn.DataParallel(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    calibrate(model.double(), x, x)
    result = fold(model, x)
    assert isinstance(result.module[1], nn.Identity)
    assert result.fold_report.left == ()
    assert relative_error(result(x), model(x)) < EXACT
    assert set(result.state_dict()) == {"module.0.weight", "module.0.bias"}
