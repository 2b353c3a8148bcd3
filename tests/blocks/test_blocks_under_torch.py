"""Every block under what torch does to modules: compiling, memory formats and autocast."""

import copy

import pytest
import torch
from truth import calibrate, fitting, relative_error, rms_error

from repblocks.blocks import CONV_BLOCKS, STAGE_BLOCKS, anneal

CHANNELS = 8
BLOCKS = {
    **{name: (CONV_BLOCKS[name], (CHANNELS, CHANNELS, 3), {"se": 0.5}) for name in CONV_BLOCKS},
    **{
        name: (STAGE_BLOCKS[name], (CHANNELS,), fitting(STAGE_BLOCKS[name], 3, 5))
        for name in STAGE_BLOCKS
    },
}
EXACT = 1e-12
ROUNDING = 1e-5
#: bfloat16 keeps 8 bits, so each of the layers of a deployed form rounds by up to 2^-9.
BFLOAT16 = 2e-2

pytestmark = pytest.mark.parametrize("name", BLOCKS)


def image(dtype):
    torch.manual_seed(1)
    return torch.randn(2, CHANNELS, 9, 10, dtype=dtype)


def ready(name, dtype):
    torch.manual_seed(0)
    block, arguments, options = BLOCKS[name]
    made = block(*arguments, **options)
    anneal(made, 1.0)
    return calibrate(made.to(dtype), image(dtype))


def compiled(block):
    torch.compiler.reset()
    return torch.compile(block, backend="aot_eager", fullgraph=True)


def step(block, x):
    """Return what a step of training computes: output, gradients and statistics."""
    x = x.clone().requires_grad_()
    output = block(x)
    output.square().sum().backward()
    gradients = {key: p.grad for key, p in block.named_parameters()}
    return {"output": output.detach(), "input": x.grad, **gradients, **dict(block.named_buffers())}


def test_a_compiled_block_trains_as_the_block_does(name):
    block, x = ready(name, torch.float64).train(), image(torch.float64)
    expected, found = step(copy.deepcopy(block), x), step(compiled(block), x)
    for key, value in expected.items():
        same = found[key if key in found else f"_orig_mod.{key}"]
        torch.testing.assert_close(same, value, rtol=EXACT, atol=EXACT, msg=key)


def test_a_compiled_block_can_be_switched(name):
    block, x = ready(name, torch.float64), image(torch.float64)
    with torch.no_grad():
        truth, wrapped = block(x), compiled(block)
        assert relative_error(wrapped(x), truth) < EXACT
        block.switch_to_deploy()
        assert relative_error(wrapped(x), truth) < EXACT
        assert relative_error(compiled(block)(x), truth) < EXACT


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=str)
def test_channels_last_stays_channels_last(name, weights):
    block, x = ready(name, torch.float32), image(torch.float32)
    with torch.no_grad():
        truth = block(x)
        x = x.to(memory_format=torch.channels_last)
        block.to(memory_format=weights)
        for _ in range(2):  # the training form, then the deployed form
            found = block(x)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert not found.is_contiguous()
            assert relative_error(found, truth) < ROUNDING
            block.switch_to_deploy()


def test_the_deployed_form_runs_under_autocast(name):
    block, x = ready(name, torch.float32), image(torch.float32)
    with torch.no_grad():
        truth = block(x).double()
        block.switch_to_deploy()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = block(x)
            convs = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
            dtypes = {conv(torch.randn(1, conv.in_channels, 9, 9)).dtype for conv in convs}
    assert dtypes == {torch.bfloat16}
    assert 0 < rms_error(found, truth) < BFLOAT16
    assert all(conv.weight.dtype == torch.float32 for conv in convs)
