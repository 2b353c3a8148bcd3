"""A fold may not make a float32 network less accurate than it was, judged by float64 truth."""

import copy

import pytest
import torch
from family_nets import build

from repblocks.folding.fold import fold

FACTOR = 2.0
NETS = [
    "efficientnet_b0",
    "fastvit_t8",
    "ghostnetv3_050",
    "hgnetv2_b0",
    "mobilenetv3_small_050",
    "mobileone_s0",
    "regnetx_002",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "resnet18",
]
# One kernel that has taken in a shortcut rounds at the size of the whole sum in each of its steps,
# where the shortcut was added once: that is the arithmetic of float32, not the folded weights.
SHORTCUTS = {"repvgg_a0": 4.0}
INPUTS = 8


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_folded_network_rounds_at_most_twice_as_much_as_its_original(name):
    """Over all inputs together: a few values of one input tell too little."""
    double, example = build(name)
    model = copy.deepcopy(double).float().eval()
    exact = copy.deepcopy(model).double()  # of the very weights that float32 has
    size, generator = example.shape[-1], torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, 3, size, size, generator=generator) for _ in range(INPUTS)]

    def run(net, dtype):
        return torch.cat([net(x.to(dtype)) for x in inputs]).double()

    truth, folded = run(exact, torch.float64), fold(model, example.float())
    own = (run(model, torch.float32) - truth).norm()
    found = (run(folded, torch.float32) - truth).norm()
    weights = (run(copy.deepcopy(folded).double(), torch.float64) - truth).norm()
    room = 1e-7 * truth.norm()
    assert weights <= own + room
    assert found <= SHORTCUTS.get(name, FACTOR) * own + room
