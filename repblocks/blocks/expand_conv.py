"""ExpandNets: a kernel as a series of convolutions with more channels, nothing in between.

``"cl"`` is 1 x 1, k x k, 1 x 1; ``"ck"`` is a series of 3 x 3 kernels that reach as far as k x k.

Source:
    Guo et al., ExpandNets, NeurIPS 2020, section 3, https://arxiv.org/abs/1811.10495
    Official code: https://github.com/GUOShuxuan/expandnets

The input is padded before the first convolution and nowhere else, as in the official code, so that
the series is one kernel at the border, too.

Differences: the first inner channels are always a multiple of the input's, the others of the
output's; the official networks for CIFAR do not expand an input of 3 channels. A ``"ck"`` series of
two has the output's alone, and one of a single kernel is that convolution. Biases, redundant before
the BatchNorm that follows, are there only without it. Even kernel sizes end in 2 taps. Training
runs one kernel, composed differentiably. Groups and dilation in both forms, 1-d and 3-d.
"""

from __future__ import annotations

from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import (
    ConvShape,
    check_choice,
    check_count,
    check_flag,
    one_kernel,
    padded_series,
    small_sizes,
)


@final
@register_block("expand_conv")
class ExpandConvBlock(ConvBlock):
    """A linear series for one kernel."""

    @classmethod
    def build_branches(
        cls, shape: ConvShape, *, expansion_rate: int = 4, form: str = "cl", norm: bool = True
    ) -> nn.Module:
        """Return the series of section 3.

        Args:
            shape: What the block replaces.
            expansion_rate: Channels inside, as a multiple of those outside.
            form: ``"cl"`` for 1 x 1, k x k, 1 x 1, or ``"ck"`` for a series of 3 x 3 kernels.
            norm: Whether a BatchNorm follows the series; if not, all convolutions have biases.

        Raises:
            ConfigurationError: if there is no such form, or the rate is no whole number of at
                least 1.
        """
        check_count("expansion_rate", expansion_rate)
        check_choice("form", form, ("cl", "ck"))
        check_flag("norm", norm)
        sizes = _pointwise_around(shape) if form == "cl" else small_sizes(shape)
        inside = [expansion_rate * shape.out_channels] * (len(sizes) - 1)
        if len(sizes) > 2:
            inside[0] = expansion_rate * shape.in_channels
        return one_kernel(shape, padded_series(shape, sizes, inside, bias=not norm), norm)


def _pointwise_around(shape: ConvShape) -> list[tuple[int, ...]]:
    ones = (1,) * shape.ndim
    return [ones, shape.kernel_size, ones]
