"""The shape of a convolution, and the branches that fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from repblocks.algebra.axis import Axis
from repblocks.algebra.kernel import padding_pairs, per_axis
from repblocks.algebra.special import CONV_CLASSES
from repblocks.branches.nodes import NORM_CLASSES, Pad, Pairs, Subsample
from repblocks.errors import ConfigurationError

Size = int | Sequence[int]


@dataclass(frozen=True)
class ConvShape:
    """What a block replaces: the arguments of one convolution, checked and one an axis.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: Taps on each axis.
        stride: On each axis.
        padding: ``(low, high)`` on each axis; a smaller branch in it may need negative ones.
        dilation: On each axis.
        groups: Divides both channel counts.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def create(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | None = None,
        dilation: Size = 1,
        groups: int = 1,
        ndim: int = 2,
    ) -> ConvShape:
        """Check the arguments of a convolution; ``padding=None`` keeps the size at stride 1.

        Raises:
            ConfigurationError: if an argument is out of range, or the padding is left open and a
                kernel size is even.
        """
        if ndim not in CONV_CLASSES:
            raise ConfigurationError(f"ndim must be 1, 2 or 3, got {ndim!r}.")
        kernel = per_axis("kernel_size", kernel_size, ndim)
        strides, dilations = per_axis("stride", stride, ndim), per_axis("dilation", dilation, ndim)
        counts: dict[str, tuple[int, ...]] = {
            "in_channels": (in_channels,),
            "out_channels": (out_channels,),
            "kernel_size": kernel,
            "stride": strides,
            "dilation": dilations,
            "groups": (groups,),
        }
        for name, values in counts.items():
            if any(type(value) is not int or value < 1 for value in values):
                shown = values[0] if len(set(values)) == 1 else values
                raise ConfigurationError(
                    f"{name} must be a whole number of at least 1, got {shown!r}."
                )
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ConfigurationError(
                    f"groups must divide {name}, got {groups} groups for {channels} channels."
                )
        pairs = _same_padding(kernel, dilations) if padding is None else None
        pairs = pairs or padding_pairs(padding or 0, ndim)
        if any(side < 0 for pair in pairs for side in pair):
            raise ConfigurationError(f"padding must not be negative, got {padding!r}.")
        return cls(in_channels, out_channels, kernel, strides, pairs, dilations, groups)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The spatial axes."""
        described = zip(self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple(Axis(k, s, low, high, d) for k, s, (low, high), d in described)

    @property
    def allows_identity(self) -> bool:
        """Whether the input itself can be a branch: as many channels, and no stride."""
        return self.in_channels == self.out_channels and set(self.stride) == {1}

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved alone, into one."""
        return self.in_channels == self.out_channels == self.groups

    def resized(self, kernel_size: Size) -> ConvShape:
        """Return the shape with a smaller kernel at the centre of this one.

        Raises:
            ConfigurationError: if no tap lies at the centre, as in an even kernel.
        """
        new = per_axis("kernel_size", kernel_size, self.ndim)
        padding, dilation = [], []
        for size, axis in zip(new, self.axes, strict=True):
            smaller = Axis(size, dilation=axis.dilation)
            missing = axis.extent - smaller.extent
            if axis.size % 2 != size % 2:
                raise ConfigurationError(
                    f"kernel_size must be odd for a branch of kernel size {size} to lie at its "
                    f"centre, got {axis.size}."
                )
            padding.append((axis.low - missing // 2, axis.high - missing // 2))
            dilation.append(smaller.dilation)
        return replace(self, kernel_size=new, padding=tuple(padding), dilation=tuple(dilation))

    def unpadded(self) -> ConvShape:
        """Return the shape without padding, for a convolution after a padding node."""
        return replace(self, padding=((0, 0),) * self.ndim)

    def pointwise(self, out_channels: int) -> ConvShape:
        """Return a 1 x 1 convolution of the input, before any stride or padding."""
        ones = (1,) * self.ndim
        pads = ((0, 0),) * self.ndim
        return ConvShape(self.in_channels, out_channels, ones, ones, pads, ones, self.groups)

    def conv(self, bias: bool = False) -> nn.Sequential:
        """Return the convolution, with the padding and stride that torch's layer cannot do."""
        series = nn.Sequential()
        padding = [low for low, high in self.padding if low == high >= 0]
        if len(padding) < self.ndim or (self._subsamples and any(padding)):
            series.add_module("pad", Pad(self.padding))
            padding = [0] * self.ndim
        stride = self.stride
        if self._subsamples:
            series.add_module("subsample", Subsample(stride))
            stride = (1,) * self.ndim
        conv = CONV_CLASSES[self.ndim](
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type] # one an axis
            stride,  # type: ignore[arg-type]
            tuple(padding),  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            bias,
        )
        series.add_module("conv", conv)
        return series

    def conv_norm(self) -> nn.Sequential:
        """Return the convolution without bias, then batch normalisation."""
        series = self.conv()
        series.add_module("norm", self.norm())
        return series

    def identity_norm(self) -> nn.Sequential:
        """Return the batch normalisation of the input, at the centre of the kernel."""
        series = nn.Sequential()
        padding = self.resized(1).padding
        if any(side for pair in padding for side in pair):
            series.add_module("pad", Pad(padding))
        series.add_module("norm", self.norm())
        return series

    def norm(self) -> nn.Module:
        """Return a batch normalisation of the output channels."""
        return NORM_CLASSES[self.ndim](self.out_channels)

    @property
    def _subsamples(self) -> bool:
        return set(self.kernel_size) == {1} and set(self.stride) != {1}


def _same_padding(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> Pairs:
    if any(size % 2 == 0 for size in kernel_size):
        raise ConfigurationError(
            f"kernel_size must be odd to keep the output size, got {kernel_size}; "
            "state the padding for an even one."
        )
    totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    return tuple((total // 2, total // 2) for total in totals)
