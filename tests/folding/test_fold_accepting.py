"""What a fold does not take, and what it takes though it looks strange."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from truth import calibrate, relative_error

from repblocks.errors import ConfigurationError, RepblocksError
from repblocks.folding.fold import fold
from repblocks.folding.fold_report import Reason

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Holding(nn.Conv2d):
    def __init__(self, held):
        super().__init__(3, 3, 1)
        self.held = held


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (None, IMAGE, "must be a torch.nn.Module, got NoneType"),
        ({}, IMAGE, "got dict"),
        (nn.ReLU, IMAGE, "got the class ReLU"),
        (nn.Sequential(nn.LazyConv2d(3, 3)), IMAGE, "'0.weight' has no shape yet"),
        (nn.Conv2d(3, 3, 1, device="meta"), IMAGE, "'weight' is on the meta device"),
        (network(), IMAGE.numpy(), "got ndarray"),
        (network(), "image.png", "got str"),
        (network(), (), "got tuple"),
        (network(), (IMAGE, IMAGE), "does not fit forward"),
        (network(), IMAGE.to_sparse(), "layout torch.sparse_coo"),
    ],
)
def test_what_cannot_be_folded_is_refused(model, example, message):
    with pytest.raises(ConfigurationError, match=message):
        fold(model, example)


@pytest.mark.parametrize("held", [threading.Lock(), (i for i in ()), torch])
def test_a_model_that_cannot_be_copied_says_so(held):
    with pytest.raises(RepblocksError, match="cannot be copied"):
        fold(Holding(held), IMAGE)


class Reading(nn.Module):
    """Takes its image out of what it is given, and writes into that."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, given):
        if isinstance(given, list):
            given.append(self.layers(given[0]))
            return given[-1]
        if isinstance(given, dict):
            given["found"] = self.layers(given["image"])
            return given["found"]
        return self.layers(given.image)


@dataclass
class Sample:
    image: Tensor


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"image": x}, Sample])
def test_a_structure_that_the_code_changes_or_a_trace_does_not_see_into(wrap):
    model = Reading().double().eval()
    x = IMAGE.double()
    calibrate(model.layers, x, x)
    folded = fold(model, (wrap(x),))
    other = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(folded(wrap(other)), model(wrap(other))) < 1e-12
    assert not any(one.reason is Reason.UNUSED for one in folded.fold_report.left)


def test_a_complex_input():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.real, self.imaginary, self.norm = (
                nn.Conv2d(3, 4, 3),
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4),
            )

        def forward(self, x):
            return self.norm(self.real(x.real)) + self.imaginary(x.imag)

    model = Parts().double().eval()
    x = torch.complex(IMAGE.double(), IMAGE.double().flip(0))
    folded = fold(model, x)
    assert isinstance(folded.norm, nn.Identity)
    with torch.no_grad():
        assert relative_error(folded(x * 1j), model(x * 1j)) < 1e-12


def test_folds_in_several_threads_do_not_disturb_each_other():
    models = [network().eval() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        folded = list(pool.map(lambda model: fold(model, IMAGE), models))
    for model, one in zip(models, folded, strict=True):
        assert isinstance(one[1], nn.Identity)
        with torch.no_grad():
            torch.testing.assert_close(one(IMAGE), model(IMAGE))


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.*:FutureWarning", "ignore:The .grad attribute"
)
@pytest.mark.parametrize(
    ("lower", "what"),
    [
        (torch.jit.script, "RecursiveScriptModule"),
        (lambda m: torch.export.export(m, (IMAGE,)).module(), "aten.batch_norm.default"),
    ],
)
def test_a_network_that_is_compiled_or_exported_stays_and_says_so(lower, what):
    lowered = lower(network().eval())
    folded = fold(lowered, IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGE), lowered(IMAGE))
    (left,) = folded.fold_report.left
    assert (left.what, left.reason) == (what, Reason.OPAQUE)
    assert left.detail.startswith("There is no rule for ")


def test_the_report_names_what_is_taken_for_a_nonlinearity():
    class Flipped(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x).flip(3)))

    (left,) = fold(Flipped(*network()).eval(), IMAGE).fold_report.left
    assert left.detail == "There is no rule for flip."
