"""Kernels that OREPA composes in places where our networks have one convolution.

Its ResNet-50 has blocks in the pointwise places, its RepVGG has one in the place of the 3 x 3
convolution of each block. One BatchNorm follows in either code, so that the network is the same
function in training, too, with fewer weights behind each kernel.

Source:
    Hu et al., OREPA, CVPR 2022, https://arxiv.org/abs/2204.00826
    Official code: https://github.com/JUGGHM/OREPA_CVPR2022
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_Parts = Mapping[str, Tensor]


def with_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which each of these blocks is a convolution ``conv``, in float64.

    A block of which a weight is missing stays what it is.

    Args:
        state: By official names; it is not changed.
    """
    found = dict(state)
    for name in state:
        path, _, kind = name.rpartition(".")
        if kind not in _BLOCKS:
            continue
        weights, compose = _BLOCKS[kind]
        names = {weight: f"{path}.{weight}" for weight in weights}
        if all(each in state for each in names.values()):
            kernel = compose({key: state[each].double() for key, each in names.items()})
            found = {key: value for key, value in found.items() if key not in names.values()}
            found[f"{path}.conv.weight"] = kernel
    return found


def _pointwise(parts: _Parts) -> Tensor:
    origin, first, second, vector = parts.values()
    series = torch.einsum("tihw,othw->oihw", first, second)
    return _scaled(vector, origin, series)


def _dense(parts: _Parts) -> Tensor:
    origin, mean, average, mixed, prior, delta, identity, kxk, deep, wide, vector = parts.values()
    taps, channels = origin.shape[2:], origin.shape[1]
    return _scaled(
        vector,
        origin,
        mean * average,
        mixed * prior.unsqueeze(1),
        torch.einsum("ti,othw->oihw", (delta + identity).flatten(1), kxk),
        torch.einsum(
            "ithw,oit->oihw", deep.view(channels, -1, *taps), wide.view(len(origin), channels, -1)
        ),
    )


def _scaled(vector: Tensor, *kernels: Tensor) -> Tensor:
    """Return the sum of kernels, each times its row of factors; more rows are of none.

    Raises:
        ValueError: if there are fewer.
    """
    if len(vector) < len(kernels):
        raise ValueError(f"vector has {len(vector)} rows for {len(kernels)} kernels")
    total = torch.zeros_like(kernels[0])
    for row, kernel in zip(vector, kernels, strict=False):
        total = total + row.view(-1, 1, 1, 1) * kernel
    return total


#: By the weight that each block has: all of its weights, in order, and what makes their kernel.
_BLOCKS: dict[str, tuple[tuple[str, ...], Callable[[_Parts], Tensor]]] = {
    "weight_or1x1_origin": (
        ("weight_or1x1_origin", "weight_or1x1_l2i_conv1", "weight_or1x1_l2i_conv2", "vector"),
        _pointwise,
    ),
    "weight_rbr_origin": (
        (
            "weight_rbr_origin",
            "weight_rbr_avg_conv",
            "weight_rbr_avg_avg",
            "weight_rbr_pfir_conv",
            "weight_rbr_prior",
            "weight_rbr_1x1_kxk_idconv1",
            "id_tensor",
            "weight_rbr_1x1_kxk_conv2",
            "weight_rbr_gconv_dw",
            "weight_rbr_gconv_pw",
            "vector",
        ),
        _dense,
    ),
}
