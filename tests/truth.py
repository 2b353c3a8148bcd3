"""What every test of a fold needs: BatchNorm statistics that show errors, and their size."""

import inspect

import torch
from torch import Tensor, nn

from repblocks.algebra import is_batch_norm


def fitting(block: type[nn.Module], *sizes: int) -> dict[str, tuple[int, ...]]:
    """Return what a block that is made for one size of images needs to know of it."""
    return {"patch_size": sizes} if "patch_size" in inspect.signature(block).parameters else {}


def calibrate(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Measure BatchNorm statistics on the inputs, then perturb them; leaves evaluation mode.

    Fresh statistics hide errors of a fold, wild ones kill the signal: measured and then perturbed
    ones do neither.
    """
    norms = [module for module in model.modules() if is_batch_norm(module)]
    momenta = [norm.momentum for norm in norms]
    model.train()
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the mean over all inputs, and nothing of the initial values
        for x in inputs:
            model(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            perturb(norm)
    return model.eval()


def perturb(norm: nn.Module) -> None:
    spread = norm.running_var.sqrt()
    norm.running_mean += 0.2 * spread * torch.randn_like(spread)
    norm.running_var *= torch.empty_like(spread).uniform_(0.7, 1.4)
    if norm.weight is not None:
        norm.weight.mul_(torch.empty_like(spread).uniform_(0.7, 1.4))
        norm.bias.add_(0.2 * torch.randn_like(spread))


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Return the largest difference, relative to the largest value of the truth."""
    assert found.shape == truth.shape
    return ((found - truth).abs().max() / truth.abs().max()).item()


def rms_error(found: Tensor, truth: Tensor) -> float:
    """Return the RMS of the difference in float64, relative to the RMS of the truth."""
    return ((found.double() - truth).square().mean() / truth.square().mean()).sqrt().item()
