"""What the code of a module may do besides calling others: look into them, count, draw numbers."""

import copy

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error
from unusual import Layers, conv, folded, image

from repblocks.folding.fold import fold
from repblocks.folding.fold_report import Reason


class Counted(nn.Conv2d):
    """A convolution with a method of its own."""

    def size(self):
        return self.weight.numel()


def _attribute(m, x):
    return m.norm(m.one(x)).relu() / m.norm.num_features


def _item_of_attribute(m, x):
    return m.norm(m.one(x)).relu() * (1 + m.one.kernel_size[0])


def _method(m, x):
    return m.norm(m.one(x)).relu() * m.one.size()


def _is_none(m, x):
    y = m.norm(m.one(x)).relu()
    return y + 1 if m.one.bias is None else y


def _parameters(m, x):
    return m.norm(m.one(x)).relu() * sum(p.square().sum() for p in m.one.parameters())


def _all_parameters(m, x):
    return m.norm(m.one(x)).relu() * sum(p.square().sum() for p in m.parameters())


def _class(m, x):
    y = m.norm(m.one(x))
    return y.relu() if isinstance(m.norm, nn.BatchNorm2d) else y


def _classes(m, x):
    for layer in (m.one, m.norm):
        x = layer(x)
        if isinstance(layer, nn.BatchNorm2d):
            x = x.relu()
    return x


LOOKS = [_attribute, _item_of_attribute, _method, _is_none, _parameters, _all_parameters]


@pytest.mark.parametrize("forward", [*LOOKS, _class, _classes])
def test_what_other_code_looks_into_stays(forward):
    one, norm = Counted(4, 8, 1, bias=False), nn.BatchNorm2d(8)
    folded(Layers(forward, one=one, norm=norm), image(2, 4, 5, 6))


def _two(m, x):
    return m.one(x) + m.two(x)


def _into_a_child(m, x):
    return m.block(x), m.block.one.weight.sum() * x


def _method_of_a_child(m, x):
    return m.block(x).relu(), x * m.block.number()


class Numbered(Layers):
    """A block with a method of its own."""

    def number(self):
        return len(list(self.children()))


@pytest.mark.parametrize("forward", [_into_a_child, _method_of_a_child])
def test_a_module_that_other_code_looks_into_does_not_become_a_graph(forward):
    block = Numbered(_two, one=conv(4, 4), two=conv(4, 4))
    folded(Layers(forward, block=block), image(2, 4, 5, 6))


def _opaque(m, x):
    y = m.block(x)
    return y * m.block.norm.num_features if y.sum() > -1e9 else y


def test_what_opaque_code_looks_into_stays():
    block = Layers(lambda m, x: m.norm(m.one(x)), one=conv(4, 8), norm=nn.BatchNorm2d(8))
    folded(Layers(_opaque, block=block), image(2, 4, 5, 6))


def _counts(m, x):
    m.number += 1
    return (m.one(x) + m.two(x)).relu() * m.number


def _counts_anew(m, x):
    m.number = m.number + 1
    return (m.one(x) + m.two(x)).relu() * m.number


@pytest.mark.parametrize("forward", [_counts, _counts_anew])
@pytest.mark.parametrize("is_buffer", [True, False])
def test_what_counts_its_calls_goes_on_counting(forward, is_buffer):
    model = Layers(forward, one=conv(4, 8), two=conv(4, 8))
    if is_buffer:
        model.register_buffer("number", torch.zeros(()))
    else:
        model.number = 0
    result = folded(model, image(2, 4, 5, 6))
    assert result.number == model.number == 3
    assert result.fold_report.left[0].reason is Reason.OPAQUE


def _noisy(m, x):
    return (m.one(x) + m.two(x)).relu() + torch.rand(8, 1, 1, dtype=x.dtype)


def _noisy_like(m, x):
    return (m.one(x) + m.two(x)).relu() + torch.rand_like(x[:, :1])


@pytest.mark.parametrize("forward", [_noisy, _noisy_like])
def test_random_numbers_stay_random_and_folding_draws_none(forward):
    model = Layers(forward, one=conv(4, 8), two=conv(4, 8))
    x = image(2, 4, 5, 6)
    before = torch.random.get_rng_state()
    fold(model.double(), x, verify=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    folded(model, x)


def _asks_for_tensors(m, x):
    return m.block(x * 2 if isinstance(x, torch.Tensor) else x)


def _asks_for_attributes(m, x):
    return m.block(x if hasattr(x, "symbol") else x * 2)


@pytest.mark.parametrize("forward", [_asks_for_tensors, _asks_for_attributes])
def test_code_that_asks_what_its_input_is_is_not_traced(forward):
    block = nn.Sequential(conv(4, 8), nn.BatchNorm2d(8))
    result = folded(Layers(forward, block=block), image(2, 4, 5, 6))
    assert isinstance(result.block[1], nn.Identity)
    assert result.fold_report.left[0].detail.startswith("Its code does something else with tensors")


def test_global_hooks_are_barriers():
    def double(module, _inputs, output):
        return 2 * output if isinstance(module, nn.Conv2d) else output

    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        folded(nn.Sequential(conv(4, 8), nn.BatchNorm2d(8)), image(2, 4, 5, 6))
    finally:
        handle.remove()


class Updating(nn.Module):
    """A convolution whose weights its code makes of others whenever it is called."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 4, 3, padding=1)
        self.whole = nn.Conv2d(4, 4, 3, padding=1)

    def update(self):
        first, second = self.first.weight.data, self.second.weight.data
        self.whole.weight.data = torch.einsum("mi,omhw->oihw", first[..., 0, 0], second)
        self.whole.bias.data = self.second.bias.data.clone()

    def forward(self, x):
        self.update()
        return self.whole(x)


def test_weights_that_code_makes_in_each_call_are_made_once():
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    parts = Updating(), nn.ReLU(), Updating(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)
    model = calibrate(nn.Sequential(*parts).double(), x, x)
    for part in (model[0], model[2]):
        part.whole.weight.data.normal_()  # of no use: it is made anew
    before = copy.deepcopy(model.state_dict())
    result = fold(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(m, Updating | nn.BatchNorm2d) for m in result.modules())
    assert result.fold_report.left == ()
    expected = copy.deepcopy(model)(x)
    assert relative_error(result(x), expected) < 1e-12
    for weight in result.state_dict().values():
        weight.mul_(2)  # nothing makes them anew
    assert relative_error(result(x), expected) > 0.1
