"""A kernel is a value: the public face of the algebra.

Shapes: weight ``(C_out, C_in // groups, *k)``, bias ``(C_out,)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from repblocks.algebra.affine import AffineMap, Lazy, block_index, embed, tensor_for
from repblocks.algebra.axis import Axis, torch_order
from repblocks.algebra.parallel import add, concat
from repblocks.algebra.serial import compose, in_blocks
from repblocks.algebra.special import CONV_CLASSES, CONV_FUNCTIONS
from repblocks.errors import ConfigurationError, NotFoldable

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Pairs = tuple[tuple[int, int], ...]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def per_axis(name: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return one whole number an axis.

    Raises:
        ConfigurationError: if ``value`` is neither a whole number nor ``ndim`` of them.
    """
    given = tuple(value) if isinstance(value, Sequence) else (value,) * ndim
    if len(given) != ndim or not all(type(v) is int for v in given):
        raise ConfigurationError(
            f"{name} must be one whole number or {ndim} of them, one an axis, got {value!r}."
        )
    return given


def padding_pairs(padding: int | Sequence[int] | Sequence[tuple[int, int]], ndim: int) -> Pairs:
    """Return the padding as ``(low, high)`` an axis; a whole number pads both sides.

    Raises:
        ConfigurationError: if it is neither a number, one an axis, nor one pair an axis.
    """
    given = padding if isinstance(padding, Sequence) else (padding,) * ndim
    sides = tuple(tuple(p) if isinstance(p, Sequence) else (p, p) for p in given)
    numbers = [type(side) is int for pair in sides for side in pair]
    if len(sides) != ndim or any(len(pair) != 2 for pair in sides) or not all(numbers):
        raise ConfigurationError(
            f"padding must be one whole number, {ndim} of them, or {ndim} pairs (low, high), "
            f"got {padding!r}."
        )
    return tuple((low, high) for low, high in sides)


@dataclass(frozen=True, eq=False)
class ConvKernel:
    """A convolution as a value, in 1, 2 or 3 dimensions.

    ``a + b`` sums parallel branches, ``b @ a`` runs ``a`` and then ``b``, ``kernel(x)`` runs the
    kernel on ``x (N, C_in, *spatial)``. No operation changes its inputs, and each raises
    :class:`~repblocks.errors.NotFoldable` where its result would not be exact.

    Args:
        weight: ``(C_out, C_in // groups, *k)``.
        bias: ``(C_out,)`` or None.
        stride: One whole number, or one an axis; kept as a tuple.
        padding: One whole number, one an axis, or a pair ``(low, high)`` an axis, negative to crop;
            kept as pairs.
        dilation: One whole number, or one an axis; kept as a tuple.
        groups: Number of equal contiguous groups.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Raises:
        ConfigurationError: if shapes or dtypes do not fit each other.

    Example:
        >>> three, one = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 1, 1)
        >>> (ConvKernel(three, padding=1) + ConvKernel(one)).weight.shape
        torch.Size([8, 4, 3, 3])
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] | int = 1
    padding: Pairs | tuple[int, ...] | int = 0
    dilation: tuple[int, ...] | int = 1
    groups: int = 1
    padding_mode: str = "zeros"
    axes: tuple[Axis, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ndim = self.weight.ndim - 2
        if ndim not in CONV_FUNCTIONS:
            raise ConfigurationError(
                "weight must be (C_out, C_in // groups, *k) with 1 to 3 axes in k, got shape "
                f"{tuple(self.weight.shape)}."
            )
        if self.groups < 1 or self.weight.shape[0] % self.groups:
            raise ConfigurationError(
                f"groups must divide the {self.weight.shape[0]} output channels, got {self.groups}."
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ConfigurationError(
                f"bias must have shape ({self.weight.shape[0]},), got {tuple(self.bias.shape)}."
            )
        if self.bias is not None and self.bias.dtype != self.weight.dtype:
            raise ConfigurationError(
                f"bias must have the dtype of the weight, {self.weight.dtype}, got "
                f"{self.bias.dtype}."
            )
        if self.padding_mode not in _PADDING_MODES:
            raise ConfigurationError(
                f"padding_mode must be one of {_PADDING_MODES}, got {self.padding_mode!r}."
            )
        stride, dilation = (per_axis(n, getattr(self, n), ndim) for n in ("stride", "dilation"))
        padding = padding_pairs(self.padding, ndim)
        if self.padding_mode == "circular" and any(side < 0 for pair in padding for side in pair):
            raise ConfigurationError(f"padding must not crop in circular mode, got {padding}.")
        described = zip(self.weight.shape[2:], stride, padding, dilation, strict=True)
        axes = tuple(Axis(k, s, low, high, d) for k, s, (low, high), d in described)
        for name, value in (("stride", stride), ("padding", padding), ("axes", axes)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "dilation", tuple(axis.dilation for axis in axes))

    @property
    def in_channels(self) -> int:
        """C_in."""
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """C_out."""
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """The number of taps on each axis."""
        return tuple(self.weight.shape[2:])

    @property
    def macs(self) -> int:
        """Multiply-adds for one output position."""
        return self.out_channels * self.weight.shape[1] * prod(self.kernel_size)

    @classmethod
    def from_conv(cls, conv: Conv, like: Tensor | None = None) -> ConvKernel:
        """Return the kernel of a layer, with the dtype and device of ``like`` if it is given."""
        return cls(
            tensor_for(conv.weight, like),
            None if conv.bias is None else tensor_for(conv.bias, like),
            conv.stride,
            conv_padding(conv),
            conv.dilation,
            conv.groups,
            conv.padding_mode,
        )

    @classmethod
    def from_affine(cls, value: AffineMap, like: Tensor | None = None) -> ConvKernel:
        """Evaluate an affine map with spatial axes, as a kernel with as many groups as it allows.

        ``like`` gives dtype and device where the map selects channels and has no weight.
        """
        return cls(
            in_blocks(value, value.groups, like),
            None if value.bias is None else value.bias(),
            tuple(axis.stride for axis in value.axes),
            tuple((axis.low, axis.high) for axis in value.axes),
            tuple(axis.dilation for axis in value.axes),
            value.groups,
            value.padding_mode,
        )

    @classmethod
    def identity(cls, channels: int, ndim: int = 2, like: Tensor | None = None) -> ConvKernel:
        """Return the dirac kernel (paradigm 6a): one depthwise tap of 1 on each channel."""
        return cls.from_affine(AffineMap.identity(channels).with_axes(ndim), like)

    def to_affine(self, like: Tensor | None = None) -> AffineMap:
        """Return the same kernel as an affine map, with the dtype and device of ``like``."""
        index = block_index(self.out_channels, self.in_channels, self.groups)
        weight, bias = self.weight, self.bias
        return AffineMap(
            self.in_channels,
            index,
            Lazy(
                lambda: tensor_for(weight, like),
                lambda start, stop: weight[start:stop].to(
                    weight if like is None else like, copy=True
                ),
            ),
            None if bias is None else Lazy(lambda: tensor_for(bias, like)),
            self.axes,
            self.padding_mode,
        )

    def to_conv(self, like: Tensor | None = None, *, copy: bool = True, same: bool = False) -> Conv:
        """Return an ``nn.Conv`` with this kernel, in evaluation mode.

        Unequal or negative padding is written as equal padding and a kernel with zero taps.

        Args:
            like: A tensor of the dtype and device of the layer; those of the kernel by default.
            copy: Whether the layer has memory of its own, also where it need not.
            same: Whether padding that is torch's ``"same"`` is written so; torch pads a copy of the
                input then, if it is unequal.
        """
        reference = self.weight if like is None else like
        same = same and all(axis.is_same for axis in self.axes)
        axes = self.axes if same else tuple(axis.symmetric() for axis in self.axes)
        weight = embed(self.weight, self.axes, axes)
        conv: Conv = CONV_CLASSES[len(axes)](
            self.in_channels,
            self.out_channels,
            tuple(axis.size for axis in axes),  # type: ignore[arg-type] # one an axis
            tuple(axis.stride for axis in axes),  # type: ignore[arg-type]
            "same" if same else tuple(axis.low for axis in axes),  # type: ignore[arg-type]
            tuple(axis.dilation for axis in axes),  # type: ignore[arg-type]
            self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,  # type: ignore[arg-type] # checked at construction
            device=torch.device("meta"),
        )
        weights = {"weight": weight, "bias": self.bias}
        for name, value in weights.items():
            if value is not None:
                layer = value.detach().to(reference, copy=copy)
                setattr(conv, name, nn.Parameter(layer, value.requires_grad))
        return conv.eval()

    def __call__(self, x: Tensor) -> Tensor:
        """Run the kernel on ``x (N, C_in, *spatial)``."""
        sides = torch_order([(axis.low, axis.high) for axis in self.axes])
        padding = [0] * len(self.axes)
        if self.padding_mode == "zeros" and all(axis.is_even for axis in self.axes):
            padding = [axis.low for axis in self.axes]  # saves a copy
        elif any(sides):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = functional.pad(x, sides, mode)
        convolve = CONV_FUNCTIONS[len(self.axes)]
        return convolve(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def __add__(self, other: ConvKernel) -> ConvKernel:
        return ConvKernel.from_affine(add(*_affine(self, other)))

    def __matmul__(self, first: ConvKernel) -> ConvKernel:
        return ConvKernel.from_affine(compose(*_affine(self, first)))


def concat_kernels(*kernels: ConvKernel) -> ConvKernel:
    """Return the kernel whose output channels are those of all ``kernels`` (paradigm 3).

    Raises:
        NotFoldable: if the kernels read another number of channels or give other positions.
        ConfigurationError: if their dtypes differ.
    """
    return ConvKernel.from_affine(concat(*_affine(*kernels)))


def _affine(*kernels: ConvKernel) -> list[AffineMap]:
    dtypes = {kernel.weight.dtype for kernel in kernels}
    if len(dtypes) > 1:
        raise ConfigurationError(
            f"Kernels of one dtype can be combined, got {', '.join(sorted(map(str, dtypes)))}; "
            "convert the weights first."
        )
    return [kernel.to_affine() for kernel in kernels]


def conv_padding(conv: Conv) -> Pairs:
    """Return the padding of a convolution layer as pairs; ``"same"`` puts the odd one after."""
    if conv.padding == "valid":
        return ((0, 0),) * len(conv.kernel_size)
    if conv.padding == "same":
        total = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    if isinstance(conv.padding, str):
        raise NotFoldable(f"Padding {conv.padding!r} is not known.")
    return tuple((p, p) for p in conv.padding)
