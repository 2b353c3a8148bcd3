"""Code that does something else at another size than the example's, unseen by a trace."""

import pytest
import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks.folding.fold import fold
from repblocks.folding.fold_report import Reason
from repblocks.folding.verification import verify

EXACT = 1e-12


class Code(nn.Module):
    """Two branches and the code that calls them."""

    def __init__(self, code):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.code = code

    def forward(self, x):
        return self.code(self, x)


def larger_is_doubled(m, x):
    y = m.norm(m.first(x)) + m.second(x)
    return y * 2 if torch.is_tensor(x) and x.shape[-1] > 12 else y


def doubled_if_it_does_not_raise(m, x):
    y = m.norm(m.first(x)) + m.second(x)
    try:
        return y * 2 if x.shape[-1] > 12 else y
    except Exception:  # noqa: BLE001 # as careless code does
        return y


def text_of_a_shape(m, x):
    return (m.norm(m.first(x)) + m.second(x)) * (2 if "16" in str(tuple(x.shape)) else 1)


def other_weights_for_a_larger_batch(m, x):
    y = m.norm(m.first(x)) + m.second(x)
    return y * 2 if isinstance(x, torch.Tensor) and x.shape[0] > 2 else y


def class_of_a_layer(m, x):
    for layer in (m.first, m.norm, m.second):
        is_norm = type(layer) is nn.BatchNorm2d
        x = layer(x).clamp(-0.5, 0.5) if is_norm else layer(x)
    return x


CODES = [
    larger_is_doubled,
    doubled_if_it_does_not_raise,
    text_of_a_shape,
    other_weights_for_a_larger_batch,
    class_of_a_layer,
]


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def prepared(model, x):
    torch.manual_seed(0)
    calibrate(model.double(), x, x)
    return model.eval()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("is_root", [True, False])
def test_what_a_trace_does_not_see_is_left_alone_and_the_rest_is_folded(code, is_root):
    torch.manual_seed(0)
    around = (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model = Code(code) if is_root else nn.Sequential(*around, Code(code), nn.ReLU())
    model = prepared(model, images(2, 4, 8, 8))
    folded = fold(model, images(2, 4, 8, 8))
    for shape in ((2, 4, 8, 8), (2, 4, 16, 16), (5, 4, 8, 8)):
        x = images(*shape)
        with torch.no_grad():
            assert relative_error(folded(x), model(x)) < EXACT
    site = "" if is_root else "2"
    (left,) = [one for one in folded.fold_report.left if one.site == site]
    assert left.reason is Reason.OPAQUE
    assert "not the same function" in left.detail
    assert len(folded.fold_report.folded) == (0 if is_root else 1)


def test_verification_looks_at_another_size():
    torch.manual_seed(0)
    model = prepared(Code(larger_is_doubled), images(2, 4, 8, 8))
    folded = fold(model, images(2, 4, 8, 8), verify=False)
    with pytest.raises(ValueError, match=r"inputs of shapes \[\(3, 4, 16, 16\)\]"):
        verify(model, folded, images(2, 4, 8, 8))


@pytest.mark.parametrize(
    "code",
    [
        lambda m, x: (m.first(x) + m.second(x)).split(8, 2)[0],
        lambda m, x: (m.first(x) + m.second(x)).chunk(1, dim=3)[0],
        lambda m, x: (m.first(x) + m.second(x)).split(2)[0],
        lambda m, x: torch.tensor_split(m.first(x) + m.second(x), [8], 3)[0],
    ],
)
def test_a_part_that_is_all_of_an_axis_in_the_example_is_none_of_the_channels(code):
    model = prepared(Code(code), images(2, 4, 8, 8))
    folded = fold(model, images(2, 4, 8, 8), verify=False)
    x = images(3, 4, 16, 16)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < EXACT


def test_an_untraceable_leaf_that_mixes_the_batch_is_no_convolution():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)

        def forward(self, x):
            y = self.conv(x)
            return y - y.mean(0) if x.shape[0] > 1 else y

    model = nn.Sequential(Mixing(), nn.BatchNorm2d(4), nn.ReLU())
    model = prepared(model, images(4, 4, 8, 8))
    folded = fold(model, images(1, 4, 8, 8))
    x = images(3, 4, 8, 8)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < EXACT
    assert isinstance(folded[1], nn.BatchNorm2d)


def test_a_mode_of_torch_for_a_part_of_the_code_is_kept():
    def code(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.first(x) + m.second(x)
        return m.norm(y.float())

    torch.manual_seed(0)
    model = Code(code).eval()
    x = torch.randn(2, 4, 8, 8)
    folded = fold(model, x)
    with torch.no_grad():
        assert torch.equal(folded(x), model(x))
    assert any("changes how torch computes" in one.detail for one in folded.fold_report.left)


def test_where_gradients_stop_they_still_do():
    def code(m, x):
        return m.norm((m.first(x) + m.second(x)).detach())

    model = prepared(Code(code), images(2, 4, 8, 8))
    folded = fold(model, images(2, 4, 8, 8))
    folded(images(2, 4, 8, 8)).sum().backward()
    with_gradients = {name for name, p in folded.named_parameters() if p.grad is not None}
    assert with_gradients == {"norm.weight", "norm.bias"}
