"""One training step of a block under each execution, and what it gave."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from repblocks.blocks import create_block


@dataclass
class Step:
    """What a training step gives."""

    output: Tensor
    of_input: Tensor
    of_weights: dict[str, Tensor]
    buffers: dict[str, Tensor]


def image(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def block_of(name, *shape, seed=0, **options):
    """Build a block in float64 with weights and shifts of all signs."""
    torch.manual_seed(seed)
    block = create_block(name, *shape, **options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block


class _OfTheFirst(nn.Module):
    def forward(self, vector):
        return vector[:1].expand(vector.shape)


def with_shared_numbers(block):
    """Give all channels of a norm the numbers of the first: vectors that do not lie in a row."""
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        register_parametrization(norm, "weight", _OfTheFirst())
        register_parametrization(norm, "bias", _OfTheFirst())
    return block


def step(block: nn.Module, x: Tensor, execution: str, calls: int = 1) -> Step:
    """Run a copy of the block forward and backward."""
    twin = copy.deepcopy(block)
    twin.execution = execution
    x = x.detach().requires_grad_()
    y = sum(twin(x) for _ in range(calls))
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    (y * weights.sin()).sum().backward()
    gradients = {key: p.grad for key, p in twin.named_parameters()}
    return Step(y.detach(), x.grad, gradients, dict(twin.named_buffers()))


def assert_same(found: Step, truth: Step, exact=1e-12, of_weights=1e-10):
    """Compare two steps; gradients of weights relative to the largest of the block."""
    assert distance(found.output, truth.output) < exact
    assert distance(found.of_input, truth.of_input) < exact
    assert found.buffers.keys() == truth.buffers.keys()
    for key, value in truth.buffers.items():
        assert distance(found.buffers[key], value) < exact, key
    largest = max(g.abs().max() for g in truth.of_weights.values())
    for key, value in truth.of_weights.items():
        assert (found.of_weights[key] - value).abs().max() < of_weights * largest, key


def distance(found: Tensor, truth: Tensor) -> float:
    found, truth = found.double(), truth.double()
    return (found - truth).abs().max().item() / (truth.abs().max().item() or 1)
