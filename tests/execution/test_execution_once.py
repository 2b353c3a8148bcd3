"""Gradients of gradients of merged blocks are refused, whichever input they are of."""

import pytest
import torch
from execution_runs import block_of, image
from torch import nn

from repblocks.algebra.normalization import is_batch_norm
from repblocks.errors import RepblocksError

CASES = [
    ("mobileone", (8, 8, 1), {}),
    ("mobileone", (8, 8, 3), {"groups": 8}),
    ("mobileone", (8, 8, 5, 2), {"groups": 8}),
    ("repvgg", (8, 8, 3), {}),
    ("dbb", (8, 8, 3), {}),
]
INPUTS = ["x", "weight", "norm weight", "norm bias"]


def inputs_of(block, x, of):
    if of == "x":
        return [x]
    kind, _, name = of.rpartition(" ")
    is_wanted = is_batch_norm if kind else lambda module: isinstance(module, nn.Conv2d)
    return [getattr(module, name) for module in block.modules() if is_wanted(module)]


def first_gradients(name, shape, options, execution, of):
    """Return a loss, its gradients by some inputs, and all inputs."""
    block = block_of(name, *shape, activation=None, execution=execution, **options)
    x = image(9, 8, 9, 9).requires_grad_()
    loss = (block(x) ** 3).sum()
    gradients = torch.autograd.grad(loss, inputs_of(block, x, of), create_graph=True)
    return loss, gradients, [x, *block.parameters()]


@pytest.mark.parametrize("of", INPUTS)
@pytest.mark.parametrize(("name", "shape", "options"), CASES, ids=str)
def test_they_are_refused(name, shape, options, of):
    loss, gradients, inputs = first_gradients(name, shape, options, "merged", of)
    _, truth, theirs = first_gradients(name, shape, options, "branchwise", of)
    refused = 0
    for gradient, branchwise in zip(gradients, truth, strict=True):
        for by, other in zip(inputs, theirs, strict=True):  # each by each: none is wrong in silence
            try:
                found = second_gradient(gradient, by)
            except RepblocksError as error:
                assert 'not twice; set execution="branchwise"' in str(error)
                refused += 1
            else:  # it has nothing to do with what is merged
                assert torch.allclose(found, second_gradient(branchwise, other))
    assert refused >= len(gradients) * len(inputs) / 2
    with pytest.raises(RepblocksError, match='not twice; set execution="branchwise"'):
        (loss + sum(gradient.square().sum() for gradient in gradients)).backward()


def second_gradient(gradient, by):
    (found,) = torch.autograd.grad(
        gradient.square().sum(), by, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(by) if found is None else found


@pytest.mark.parametrize("of", INPUTS)
def test_branches_have_them(of):
    loss, gradients, (x, *_) = first_gradients("dbb", (8, 8, 3), {}, "branchwise", of)
    (loss + sum(gradient.square().sum() for gradient in gradients)).backward()
    assert x.grad.isfinite().all()


def test_what_a_first_gradient_does_not_depend_on_has_none():
    block = block_of("mobileone", 8, 8, 1, activation=None, execution="merged")
    block.requires_grad_(False)
    x = image(9, 8, 9, 9).requires_grad_()
    shift = torch.zeros((), dtype=x.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x).sum() + shift, x, create_graph=True)
    assert torch.autograd.grad(gradient.sum() + shift, shift)[0] == 1
