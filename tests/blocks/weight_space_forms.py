"""What the tests of blocks in weight space share: parameters that show errors, and all forms."""

import torch
from torch import nn
from truth import calibrate, relative_error

from repblocks.blocks import create_block
from repblocks.execution import execute

EXACT = 1e-10


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def trained(name, *arguments, **options):
    """Return a block in float64 whose parameters are all random, none 0 or 1."""
    torch.manual_seed(0)
    block = create_block(name, *arguments, activation=None, **options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return block


def kernel_node(block):
    """Return the part of a block that trains as one kernel."""
    return getattr(block.branches, "kernel", block.branches)


def check_forms(block, x, expected):
    """Compare all forms of what a block computes before its norm with what is expected.

    They are: branch by branch, in training as one kernel; and with the norm, the training form and
    the deployed one.
    """
    node = kernel_node(block)
    with torch.no_grad():
        for found in (node(x), execute(node.train(), x, "weight_space")):
            assert relative_error(found, expected) < EXACT
        truth = calibrate(block, x)(x)
        block.switch_to_deploy()
        assert relative_error(block(x), truth) < EXACT
    assert isinstance(block.conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def check_gradients(block, x):
    """Compare the gradients in training, as one convolution, with those branch by branch."""
    node, called = kernel_node(block), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    merged = _gradients(node.train(), x, "weight_space")
    hook.remove()
    assert not called
    branchwise = _gradients(node, x, "branchwise")
    torch.testing.assert_close(merged, branchwise, rtol=EXACT, atol=EXACT)


def _gradients(module, x, execution):
    module.zero_grad()
    x = x.clone().requires_grad_()
    execute(module, x, execution).square().mean().backward()
    return {"input": x.grad} | {name: p.grad.clone() for name, p in module.named_parameters()}
