"""ECB: k x k, 1 x 1 then k x k, and 1 x 1 then Sobel and Laplacian filters, without inner norms.

Source:
    Zhang et al., Edge-oriented Convolution Block (ECBSR), ACM Multimedia 2021, section 3.2,
    https://doi.org/10.1145/3474085.3475291
    Official code: https://github.com/xindongzhang/ECBSR

The published branches pad what comes out of a 1 x 1 with its bias. That is what its kernel gives on
zeros, so here the input is padded before it.

Differences: a BatchNorm follows, unless ``norm`` is false; the published block has none, but
biases, which are here where the BatchNorm is not. Kernels of more than 3 taps have the edge filters
at their centre; an axis of a single tap has none. In n dimensions there is one Sobel filter for
each axis. Filters are neither parameters nor in the state dict. Training runs one kernel, composed
differentiably; evaluation runs the branches until the block is deployed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import (
    ConvShape,
    FixedFilters,
    Pad,
    Scale,
    Sum,
    check_count,
    check_flag,
    laplacian_filters,
    one_kernel,
    padded_series,
    sobel_filters,
)

#: The deviation from 0 that scales and biases of the edge filters start with, in the official code.
_START = 1e-3


@final
@register_block("ecb")
class ECBlock(ConvBlock):
    """k x k, and edge filters of 1 x 1.

    With ``activation="prelu"`` and ``norm=False`` it is the published block.
    """

    @classmethod
    def build_branches(
        cls,
        shape: ConvShape,
        *,
        depth_multiplier: int = 2,
        use_identity: bool = False,
        norm: bool = True,
    ) -> nn.Module:
        """Return the branches of section 3.2.

        Args:
            shape: What the block replaces.
            depth_multiplier: Channels between the 1 x 1 and the k x k, as a multiple of C_out.
            use_identity: Whether there is an identity branch where the shape allows it.
            norm: Whether a BatchNorm follows the sum; if not, all convolutions have biases.

        Raises:
            ConfigurationError: if no tap of the kernel lies at its centre, or an argument is of
                another type.
        """
        check_count("depth_multiplier", depth_multiplier)
        check_flag("use_identity", use_identity)
        check_flag("norm", norm)
        bias, ones = not norm, (1,) * shape.ndim
        inside = [depth_multiplier * shape.out_channels]
        branches = Sum({"kxk": shape.conv(bias)})
        branches["expand_squeeze"] = padded_series(shape, [ones, shape.kernel_size], inside, bias)
        _add_edges(branches, shape, bias)
        if use_identity and shape.allows_identity:
            branches["identity"] = Pad(shape.resized(1).padding)
        return one_kernel(shape, branches, norm)


def _add_edges(branches: Sum, shape: ConvShape, bias: bool) -> None:
    """Add a 1 x 1 and a Sobel filter for each axis that has edges, and a 1 x 1 and a Laplacian."""
    centre = shape.resized(tuple(1 if size == 1 else 3 for size in shape.kernel_size))
    filtered = replace(centre.unpadded(), in_channels=shape.out_channels, groups=shape.out_channels)
    axes = [axis for axis, size in enumerate(filtered.kernel_size) if size == 3]
    for axis in axes:
        branches[f"sobel{axis}"] = _edges(centre, sobel_filters(filtered, axis), bias)
    if axes:
        branches["laplacian"] = _edges(centre, laplacian_filters(filtered), bias)


def _edges(centre: ConvShape, filters: FixedFilters, bias: bool) -> nn.Sequential:
    scale = Scale(centre.out_channels, bias=bias)
    for parameter in scale.parameters():
        nn.init.normal_(parameter, std=_START)
    series = nn.Sequential()
    series.add_module("pad", Pad(centre.padding))
    series.add_module("pointwise", centre.pointwise(centre.out_channels).conv(bias))
    series.add_module("filters", filters)
    series.add_module("scale", scale)
    return series
