"""DBB: k x k, 1 x 1, 1 x 1 then k x k, and 1 x 1 then average pooling, all with BatchNorm.

Source:
    Ding et al., Diverse Branch Block, CVPR 2021, https://arxiv.org/abs/2103.13425
    Official code: https://github.com/DingXiaoH/DiverseBranchBlock

Differences: dilation reaches every branch; padding need not be half the kernel; 1-d and 3-d;
``post_norm`` puts one BatchNorm after the sum in the place of the last one of each branch. As in
the paper, the border of the inner BatchNorm comes from running statistics, in training too.
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import (
    AveragePool,
    BatchNormPad,
    ConvShape,
    Pad,
    Sum,
    check_flag,
    normed_after_sum,
    start_scales_,
)
from repblocks.errors import ConfigurationError


@final
@register_block("dbb")
class DiverseBranchBlock(ConvBlock):
    """Four branches of different depth; a depthwise block leaves out its dense 1 x 1."""

    #: What the official code calls them; at first its padding norm was itself the BatchNorm.
    official_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^dbb_origin\.conv\.", "branches.kxk.conv."),
        (r"^dbb_origin\.bn\.", "branches.kxk.norm."),
        (r"^dbb_1x1\.conv\.", "branches.pointwise.conv."),
        (r"^dbb_1x1\.bn\.", "branches.pointwise.norm."),
        (r"^dbb_1x1_kxk\.idconv1\.", "branches.pointwise_kxk.pointwise.delta.conv."),
        (r"^dbb_1x1_kxk\.conv1\.", "branches.pointwise_kxk.pointwise.conv."),
        (r"^dbb_1x1_kxk\.bn1\.(bn\.)?", "branches.pointwise_kxk.norm_pad.norm."),
        (r"^dbb_1x1_kxk\.conv2\.", "branches.pointwise_kxk.kxk.conv."),
        (r"^dbb_1x1_kxk\.bn2\.", "branches.pointwise_kxk.kxk.norm."),
        (r"^dbb_avg\.conv\.", "branches.pointwise_average.pointwise.conv."),
        (r"^dbb_avg\.bn\.(bn\.)?", "branches.pointwise_average.norm_pad.norm."),
        (r"^dbb_avg\.avgbn\.", "branches.pointwise_average.norm."),
        (r"^dbb_reparam\.", "conv."),
    )

    @classmethod
    def build_branches(
        cls,
        shape: ConvShape,
        *,
        internal_channels: int | None = None,
        single_start: bool = False,
        first_scale: float = 1.0,
        post_norm: bool = False,
    ) -> nn.Module:
        """Return the branches of figure 1.

        Args:
            shape: What the block replaces.
            internal_channels: Channels between the 1 x 1 and the k x k; None for those of the
                input, twice as many in a depthwise block.
            single_start: Whether all branches but k x k start from nothing: the scale of their
                last BatchNorm is 0 (the official code's ``single_init``).
            first_scale: What the scales of the last BatchNorms start from (its ``init_gamma``).
            post_norm: Whether one BatchNorm follows the sum, in the place of the last of each
                branch; those inside of branches stay.

        Raises:
            ConfigurationError: if the internal channels are no multiple of the groups, an argument
                is of another type, ``first_scale`` not above 0, or ``single_start`` is asked of
                branches without a last BatchNorm.
        """
        check_flag("post_norm", post_norm)
        branches = Sum({"kxk": shape.conv_norm()})
        if not shape.is_depthwise:
            branches["pointwise"] = shape.resized(1).conv_norm()
        branches["pointwise_kxk"] = _pointwise_kxk(shape, internal_channels)
        branches["pointwise_average"] = _pointwise_average(shape)
        tree = normed_after_sum(branches, shape) if post_norm else branches
        start_scales_(tree, first_scale, single_start)
        return tree


def _pointwise_kxk(shape: ConvShape, internal_channels: int | None) -> nn.Sequential:
    internal = internal_channels
    if internal is None:
        internal = shape.in_channels * (2 if shape.is_depthwise else 1)
    if type(internal) is not int or internal < 1 or internal % shape.groups:
        raise ConfigurationError(
            f"internal_channels must be a multiple of the {shape.groups} groups, got {internal!r}."
        )
    inner = shape.pointwise(internal)
    outer = ConvShape(
        internal,
        shape.out_channels,
        shape.kernel_size,
        shape.stride,
        ((0, 0),) * shape.ndim,
        shape.dilation,
        shape.groups,
    )
    first: nn.Module = inner.conv()
    if internal == shape.in_channels:
        first = _from_identity(first)
    series = nn.Sequential()
    series.add_module("pointwise", first)
    series.add_module("norm_pad", BatchNormPad(internal, shape.padding))
    series.add_module("kxk", outer.conv_norm())
    return series


def _from_identity(pointwise: nn.Module) -> Sum:
    """Return the identity plus a 1 x 1 convolution that starts from zero and decays to it."""
    for weight in pointwise.parameters():
        nn.init.zeros_(weight)
    return Sum({"identity": nn.Identity(), "delta": pointwise})


def _pointwise_average(shape: ConvShape) -> nn.Sequential:
    series = nn.Sequential()
    if shape.is_depthwise:
        series.add_module("pad", Pad(shape.padding))
    else:
        series.add_module("pointwise", shape.pointwise(shape.out_channels).conv())
        series.add_module("norm_pad", BatchNormPad(shape.out_channels, shape.padding))
    series.add_module("average", AveragePool(shape.kernel_size, shape.stride, shape.dilation))
    series.add_module("norm", shape.norm())
    return series
