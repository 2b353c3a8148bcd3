"""Parameters and multiply-adds of both forms of ECBSR and SPAN, against closed formulas.

The official repositories publish no counts as text. Multiply-adds are those of convolutions with
weights that are trained; what stands between the bias-aware paddings sees one position more on each
side.
"""

import pytest
import torch
from models_nets import count_parameters
from torch import nn

from repblocks.blocks import create_block
from repblocks.models import ECBSR, SPAN

ROWS, COLUMNS = 9, 11
INSIDE, PADDED = ROWS * COLUMNS, (ROWS + 2) * (COLUMNS + 2)
scales = pytest.mark.parametrize("scale", [2, 3, 4])


def counts(model, channels):
    """Return parameters and multiply-adds for an image, on the meta device."""
    total = 0

    def add(module, _, output):
        nonlocal total
        total += module.weight[0].numel() * output.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    with torch.no_grad():
        model.to("meta").eval()(torch.zeros(1, channels, ROWS, COLUMNS, device="meta"))
    return count_parameters(model), total


def added(*layers):
    return tuple(map(sum, zip(*layers, strict=True)))


def conv(c_in, c_out, taps, positions=INSIDE):
    return taps * c_in * c_out + c_out, taps * c_in * c_out * positions


def ecb(c_in, c_out, deployed):
    """3 x 3; in training beside 1 x 1 and 3 x 3 of twice the channels, and three edge filters."""
    if deployed:
        return conv(c_in, c_out, 9)
    wide = 2 * c_out
    series = added(conv(c_in, wide, 1, PADDED), conv(wide, c_out, 9))
    edges = [added(conv(c_in, c_out, 1, PADDED), (2 * c_out, 0)) for _ in range(3)]
    return added(conv(c_in, c_out, 9), series, *edges)


def conv3xc(c_in, c_out, deployed):
    """3 x 3; in training 1 x 1, 3 x 3 and 1 x 1 of twice the channels, and 1 x 1 beside them."""
    if deployed:
        return conv(c_in, c_out, 9)
    series = (
        conv(c_in, 2 * c_in, 1, PADDED),
        conv(2 * c_in, 2 * c_out, 9),
        conv(2 * c_out, c_out, 1),
    )
    return added(*series, conv(c_in, c_out, 1))


@scales
@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize(("depth", "width"), [(4, 8), (4, 16), (10, 32), (16, 64)])
def test_ecbsr_counts_as_its_formula(depth, width, deployed, scale):
    # On the luminance, with a slope for each channel of each activation.
    inner = [ecb(width, width, deployed)] * depth
    slopes = (depth + 1) * width, 0
    expected = added(ecb(1, width, deployed), *inner, ecb(width, scale**2, deployed), slopes)
    model = ECBSR(scale, depth=depth, width=width, deploy=deployed)
    assert counts(model, 1) == expected


@scales
@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("width", [48, 52])
def test_span_counts_as_its_formula(width, deployed, scale):
    c, pixels = width, 3 * scale**2
    inner = [conv3xc(c, c, deployed)] * 19
    ends = conv3xc(3, c, deployed), conv(4 * c, c, 1), conv(c, pixels, 9)
    assert counts(SPAN(scale, width=c, deploy=deployed), 3) == added(*inner, *ends)


def test_the_official_block_has_as_many_weights_and_its_masks():
    # Counted in the official code: 2368 for 8 channels, with the 3 masks of 8 x 9, and 584.
    block = create_block("ecb", 8, 8, 3, norm=False, activation=None)
    assert count_parameters(block) + 3 * 8 * 9 == 2368
    assert ecb(8, 8, True)[0] == 584
