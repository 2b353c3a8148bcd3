"""The networks that enlarge images: both forms are one function, in the end of convolutions."""

import pytest
import torch
from models_nets import count_parameters
from torch import nn
from torch.nn import functional
from truth import calibrate, relative_error

from repblocks import fold
from repblocks.blocks import CONV_BLOCKS, ConvBlock
from repblocks.errors import ConfigurationError, UnknownNameError
from repblocks.folding.switch import fold_blocks
from repblocks.models import ECBSR, SPAN

SMALL = {ECBSR: {"depth": 2, "width": 6}, SPAN: {"depth": 2, "width": 6}}
networks = pytest.mark.parametrize("network", SMALL)
scales = pytest.mark.parametrize("scale", [2, 3, 4])


def images(seed=1, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 7, 9, generator=generator, dtype=torch.float64)


def small(network, scale=2, **options):
    torch.manual_seed(0)
    return network(scale, **{**SMALL[network], "in_chans": 3, **options}).double().eval()


@networks
@scales
def test_both_forms_are_one_function_of_more_pixels(network, scale):
    model, x = small(network, scale), images()
    folded, report = fold_blocks(model)
    with torch.no_grad():
        truth = model(x)
        assert truth.shape == (2, 3, 7 * scale, 9 * scale)
        assert relative_error(folded(x), truth) < 1e-12
    assert report
    assert {type(m) for m in folded.modules() if hasattr(m, "weight")} <= {nn.Conv2d, nn.PReLU}
    assert count_parameters(folded) < count_parameters(model)


@networks
@pytest.mark.parametrize("block", [None, "repvgg", "acb"])
def test_any_fold_gives_plain_convolutions(network, block):
    model = calibrate(small(network, block=block), images(), images(2))
    x = images(3)
    folded = fold(model, x)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-10
    assert {type(m) for m in folded.modules() if hasattr(m, "weight")} <= {nn.Conv2d, nn.PReLU}
    assert count_parameters(folded) == count_parameters(small(network, block=block, deploy=True))


@networks
def test_a_folded_state_loads_into_the_deployed_form(network):
    folded, _ = fold_blocks(small(network))
    deployed = small(network, deploy=True)
    deployed.load_state_dict(folded.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(deployed(images()), folded(images()))


@networks
@pytest.mark.parametrize("block", CONV_BLOCKS)
def test_a_block_fills_every_place(network, block):
    model = small(network, block=block)
    assert {type(m) for m in model.modules() if isinstance(m, ConvBlock)} == {CONV_BLOCKS[block]}
    assert model.train()(images()).isfinite().all()


@networks
def test_gradients_reach_every_parameter(network):
    model = small(network).train()
    model(images()).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_ecbsr_starts_from_the_enlarged_image():
    model, x = small(ECBSR, 3), images()
    for parameter in model.body[-1].parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        nearest = functional.interpolate(x, scale_factor=3, mode="nearest")
        torch.testing.assert_close(model(x), nearest)


@networks
def test_refusals(network):
    with pytest.raises(ConfigurationError, match="scale must be.* at least 1.* got 0"):
        network(0)
    with pytest.raises(ConfigurationError, match="depth must be.* at least .* got -1"):
        network(2, depth=-1)
    with pytest.raises(UnknownNameError, match="'ecbb'.*Did you mean 'ecb'"):
        network(2, block="ecbb")
