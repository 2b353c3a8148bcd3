"""Conv3XC: 1 x 1, k x k and 1 x 1 in a row with more channels inside, beside a 1 x 1.

Source:
    Wan et al., SPAN, CVPR workshops 2024, https://arxiv.org/abs/2311.12770
    Official code: https://github.com/hongyuanyu/SPAN (basicsr/archs/span_arch.py)

The input is padded before the first convolution, as in the official code: its bias then stands in
the border, so that the series is one kernel there, too.

Differences: a BatchNorm follows, unless ``norm`` is false; the published block has none, but
biases, which are here where the BatchNorm is not. The gain is 2 unless said otherwise, that of
SPAN's network. Training runs one kernel, too, composed differentiably; evaluation runs the branches
until the block is deployed. Any odd kernel size, padding and dilation, groups, 1-d and 3-d.
"""

from __future__ import annotations

from typing import final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import ConvShape, Sum, check_count, check_flag, one_kernel, padded_series


@final
@register_block("conv3xc")
class Conv3XCBlock(ConvBlock):
    """A wide linear series, and 1 x 1."""

    @classmethod
    def build_branches(cls, shape: ConvShape, *, gain: int = 2, norm: bool = True) -> nn.Module:
        """Return the series and the shortcut.

        Args:
            shape: What the block replaces.
            gain: Channels inside, as a multiple of those of the input and of the output.
            norm: Whether a BatchNorm follows the sum; if not, all convolutions have biases.

        Raises:
            ConfigurationError: if the gain is no whole number of at least 1, or no tap of the
                kernel lies at its centre.
        """
        check_count("gain", gain)
        check_flag("norm", norm)
        ones = (1,) * shape.ndim
        channels = [gain * shape.in_channels, gain * shape.out_channels]
        series = padded_series(shape, [ones, shape.kernel_size, ones], channels, bias=not norm)
        shortcut = shape.resized(1).conv(bias=not norm)
        return one_kernel(shape, Sum({"series": series, "shortcut": shortcut}), norm)
