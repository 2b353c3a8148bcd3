"""Modules whose code cannot be traced, found out by what they give."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks.folding.fold import fold

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Padded(nn.Module):
    """A norm that pads with its image of zero, written into slices (Diverse Branch Block)."""

    def __init__(self, channels, padding=1):
        super().__init__()
        self.norm, self.padding = nn.BatchNorm2d(channels), padding

    def forward(self, x):
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        image = (self.norm.bias - self.norm.running_mean * scale).detach().view(1, -1, 1, 1)
        x = functional.pad(self.norm(x), [self.padding] * 4)
        x[:, :, : self.padding] = image
        x[:, :, -self.padding :] = image
        x[..., : self.padding] = image
        x[..., -self.padding :] = image
        return x


class Diverse(nn.Module):
    """The four branches of a Diverse Branch Block."""

    def __init__(self, c, d, stride=1):
        super().__init__()
        self.origin = nn.Sequential(nn.Conv2d(c, d, 3, stride, 1, bias=False), nn.BatchNorm2d(d))
        self.one = nn.Sequential(nn.Conv2d(c, d, 1, stride, bias=False), nn.BatchNorm2d(d))
        first = nn.Conv2d(c, d, 1, bias=False)
        self.pool = nn.Sequential(first, Padded(d), nn.AvgPool2d(3, stride), nn.BatchNorm2d(d))
        first, second = nn.Conv2d(c, c, 1, bias=False), nn.Conv2d(c, d, 3, stride, bias=False)
        self.chain = nn.Sequential(first, Padded(c), second, nn.BatchNorm2d(d))

    def forward(self, x):
        x = self.origin(x) + self.one(x) + self.pool(x) + self.chain(x)
        return functional.relu(x)


class Untraceable(nn.Module):
    """Something whose code asks for a number of its input."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, x):
        if not isinstance(x, torch.Tensor) or len(list(x)) < 1:
            raise TypeError
        return self.function(self, x)


def folded_exactly(model, *shape):
    x = torch.randn(*shape, dtype=torch.float64)
    calibrate(model.double(), x, x)
    before = copy.deepcopy(model)
    result = fold(model, x)
    other = torch.randn(*shape[:2], *(size + 3 for size in shape[2:]), dtype=torch.float64)
    with torch.no_grad():
        for one in (x, other):
            assert relative_error(result(one), before(one)) < EXACT
    return result


def layers(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]


def norms(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize("stride", [1, 2])
def test_a_diverse_branch_block_with_padding_in_slices_becomes_one_convolution(stride):
    result = folded_exactly(Diverse(4, 6, stride), 2, 4, 9, 8)
    (conv,) = layers(result)
    assert conv.kernel_size == (3, 3)
    assert norms(result) == 0
    assert result.fold_report.left == ()


@pytest.mark.parametrize(
    ("name", "kernel", "options"),
    [
        ("Conv1d", 5, {"padding": 1, "stride": 3}),
        ("Conv2d", (3, 5), {"padding": (1, 0), "dilation": 2}),
        ("Conv2d", 3, {"padding": 1, "stride": 2, "groups": 4}),
        ("Conv3d", 2, {"groups": 2}),
    ],
)
def test_the_geometry_of_a_probed_module_is_found(name, kernel, options):
    ndim = int(name[4])
    own = getattr(nn, name)(4, 8, kernel, **options)
    norm = getattr(nn, f"BatchNorm{ndim}d")(8)
    probed = Untraceable(lambda m, x: m.layers[1](m.layers[0](x)), own, norm)
    last = getattr(nn, f"BatchNorm{ndim}d")(8)
    result = folded_exactly(nn.Sequential(probed, last, nn.ReLU()), 2, 4, *[9] * ndim)
    (conv,) = layers(result)
    assert norms(result) == 0
    for option in ("kernel_size", "stride", "dilation", "groups"):
        assert getattr(conv, option) == getattr(own, option)
    assert result.fold_report.left == ()


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x.clamp(max=50.0),
        lambda _, x: x + x.mean(),
        lambda _, x: x.flip(-1),
        lambda _, x: functional.pad(x, [1, 1, 1, 1], "reflect"),
        lambda _, x: x * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype),
        lambda _, x: x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype),
        lambda _, x: x * torch.rand_like(x),
        lambda _, x: x.cumsum(-1),
        lambda _, x: x.sort(-1).values,
        lambda _, x: x * 0.0,
        lambda _, x: x if x.shape[-1] > 12 else 2.0 * x,
        lambda _, x: x if x.shape[-1] > 3 else 2.0 * x,
        lambda _, x: x if x.shape[-1] < 50 else 2.0 * x,
        lambda _, x: x.clamp(-65504, 65504),
        lambda _, x: x.to(torch.bfloat16).to(x.dtype),
    ],
)
def test_what_is_no_convolution_is_left_alone(function):
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Untraceable(function), nn.Conv2d(4, 3, 1)).double()
    result = fold(model.eval(), x)
    assert len(layers(result)) == 2
    assert torch.equal(result(x), model(x)) or function(None, x).std() > 0  # random numbers
    (left,) = result.fold_report.left
    assert left.reason == "opaque"


def test_a_kernel_that_reads_further_than_the_probed_images_is_left_alone():
    def code(m, x):
        return m.layers[0](x) + m.layers[1](x)

    near = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    far = nn.Conv2d(4, 4, 3, padding=36, dilation=36, groups=4)
    result = folded_exactly(nn.Sequential(Untraceable(code, near, far), nn.ReLU()), 2, 4, 28, 28)
    assert len(layers(result)) == 2


def test_a_module_that_is_large_is_not_probed():
    probed = Untraceable(lambda m, x: m.layers[0](x), nn.Conv2d(512, 512, 3))
    result = fold(nn.Sequential(probed, nn.ReLU()).eval(), torch.randn(1, 512, 5, 5), verify=False)
    (left,) = result.fold_report.left
    assert "too large" in left.detail


def test_a_module_that_counts_its_calls_is_left_alone():
    def code(m, x):
        m.calls += 1
        return x

    probed = Untraceable(code)
    probed.register_buffer("calls", torch.zeros(()))
    result = fold(nn.Sequential(probed, nn.Conv2d(4, 3, 1)).eval(), torch.randn(2, 4, 5, 5))
    assert result[0].calls == 0
    result(torch.randn(2, 4, 5, 5))
    assert result[0].calls == 1


def test_a_module_with_hooks_inside_is_left_alone():
    probed = Untraceable(lambda m, x: m.layers[0](x), nn.Conv2d(4, 4, 3))
    probed.layers[0].register_forward_hook(lambda *_: None)
    result = fold(nn.Sequential(probed, nn.Conv2d(4, 3, 1)).eval(), torch.randn(2, 4, 5, 5))
    assert len(layers(result)) == 2


def test_a_cheap_module_is_not_made_a_dense_layer():
    def code(m, x):  # a convolution of a quarter of the channels
        return torch.cat([m.layers[0](x[:, :2]), x[:, 2:]], 1)

    probed = Untraceable(code, nn.Conv2d(2, 2, 3, padding=1))
    result = folded_exactly(nn.Sequential(probed, nn.ReLU()), 2, 8, 6, 7)
    (conv,) = layers(result)
    assert conv.in_channels == 2


def test_what_is_inside_a_probed_module_is_folded_where_the_module_stays():
    def code(m, x):
        return m.layers[0](x).relu()

    inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    result = folded_exactly(nn.Sequential(Untraceable(code, inner), nn.Conv2d(4, 4, 1)), 2, 4, 9, 9)
    assert norms(result) == 0
    assert len(layers(result)) == 2


def test_a_float32_module_is_probed_in_float64():
    model = Diverse(4, 6)
    x = torch.randn(2, 4, 9, 8)
    calibrate(model, x, x)
    result = fold(model, x)
    assert len(layers(result)) == 1
    assert layers(result)[0].weight.dtype == torch.float32
    truth = copy.deepcopy(model).double()(x.double())
    assert relative_error(copy.deepcopy(result).double()(x.double()), truth) < 1e-6
