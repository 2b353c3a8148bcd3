"""Initial weights, where a family's paper does not leave them to torch."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd


def he_normal_(model: nn.Module) -> None:
    """Draw the convolutions so that a ReLU network keeps the size of its activations.

    Source:
        He et al., Delving Deep into Rectifiers, ICCV 2015, https://arxiv.org/abs/1502.01852
    """
    for module in model.modules():
        if isinstance(module, _ConvNd) and _is_drawn(module):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def truncated_normal_(model: nn.Module) -> None:
    """Draw convolutions and the classifier with standard deviation 0.02; biases are zero.

    Source:
        Liu et al., ConvNeXt, CVPR 2022, official code, https://arxiv.org/abs/2201.03545
    """
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and _is_drawn(module):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _is_drawn(module: _ConvNd | nn.Linear) -> bool:
    """Tell whether the weights are random; a block may start a branch from zero on purpose."""
    return not module.weight.is_meta and bool(module.weight.any())
