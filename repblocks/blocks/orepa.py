"""OREPA: six branches whose kernels are scaled and summed before they run, and one BatchNorm.

k x k; 1 x 1; 1 x 1 then k x k; 1 x 1 then average; 1 x 1 then cosine filters; and k x k depthwise
then 1 x 1. Each ends in a factor for each channel, a row of the official ``vector``, which weight
decay acts on. A 1 x 1 kernel is the sum of one and of two in a row; a kernel of 7 taps or more,
that of a stem, is a series of 3 x 3 kernels, each of them the sum of six.

Source:
    Hu et al., OREPA, CVPR 2022, section 3, https://arxiv.org/abs/2204.00826
    Official code: https://github.com/JUGGHM/OREPA_CVPR2022

Differences: the cosine filters have the period of the kernel size; the official ones have that of 3
taps, and for larger kernels hold memory that nothing wrote to. A series is the kernel of
convolutions run one after the other; the official code composes kernels without turning one of
them, which no such series computes. All kernels of a series are grouped, and the 1 x 1 form is,
too; the official code stops at both. The identity before the k x k is no buffer. Padding need not
be half the kernel; in n dimensions the cosine filters are shared out among the axes. Training is
the official one, composed differentiably; evaluation runs the branches until the block is deployed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from repblocks.blocks._base import ConvBlock
from repblocks.blocks._registry import register_block
from repblocks.branches import (
    AveragePool,
    ConvShape,
    Pad,
    RepeatChannels,
    Scale,
    Sum,
    check_choice,
    check_count,
    check_factor,
    check_flag,
    cosine_filters,
    in_series,
    one_kernel,
    small_sizes,
)
from repblocks.errors import CheckpointError, ConfigurationError

#: What the factors of each branch start with, in the order of the official ``vector``.
_STARTS = {
    "origin": 0.25,
    "average": 0.25,
    "prior": 0.0,
    "pointwise_kxk": 0.5,
    "pointwise": 1.0,
    "depthwise": 0.5,
}
_POINTWISE_STARTS = {"origin": 1.0, "pointwise_pointwise": 0.5}
#: Taps from which a kernel is a series of small ones.
_LARGE = 7
#: Official buffers, how near they must be to ours, and kernels that are ours turned around.
_BUFFERS = ("weight_orepa_prior", "weight_orepa_avg_avg", "id_tensor")
_ROUNDING = 2e-3
_LATER = re.compile(r"weight[1-9]\d*(\.|$)")


@final
@register_block("orepa")
class OREPABlock(ConvBlock):
    """Six branches with factors in place of norms, summed as kernels."""

    #: What the official code calls its weights; ``of_official`` comes before.
    official_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^weight(\d+)$", r"branches.kernel.kernel\1.conv.weight"),
        (r"^weight(\d+)\.", r"branches.kernel.kernel\1."),
        (r"^(?=weight_orepa_|vector\.)", "branches.kernel.sum."),
        (r"\.vector\.(\w+)$", r".\1.scale.weight"),
        (r"\.weight_orepa_origin$", ".origin.step0.conv.weight"),
        (r"\.weight_orepa_avg_conv$", ".average.step0.conv.weight"),
        (r"\.weight_orepa_pfir_conv$", ".prior.step0.conv.weight"),
        (r"\.weight_orepa_1x1_kxk_idconv1$", ".pointwise_kxk.step0.delta.conv.weight"),
        (r"\.weight_orepa_1x1_kxk_conv2$", ".pointwise_kxk.step1.conv.weight"),
        (r"\.weight_orepa_1x1$", ".pointwise.step0.conv.weight"),
        (r"\.weight_orepa_gconv_dw$", ".depthwise.step0.conv.weight"),
        (r"\.weight_orepa_gconv_pw$", ".depthwise.step1.conv.weight"),
        (r"^bn\.", "branches.norm."),
        (r"^(orepa|or_large)_reparam\.", "conv."),
    )

    @classmethod
    def build_branches(
        cls,
        shape: ConvShape,
        *,
        internal_channels: int | None = None,
        depthwise_multiplier: int = 8,
        large_kernel: str = "orepa",
        single_init: bool = False,
        weight_scale: float = 1.0,
        vector_scale: float = 1.0,
    ) -> nn.Module:
        """Return the branches of section 3.

        Args:
            shape: What the block replaces.
            internal_channels: Channels between the 1 x 1 and the k x k; None for those of the
                input, twice as many with more than 4 groups.
            depthwise_multiplier: Filters of each input channel in the depthwise branch.
            large_kernel: What a kernel of 7 taps or more on each axis is: ``"orepa"`` for a series
                of 3 x 3 with six branches each, ``"plain"`` for a series of 3 x 3, ``"branches"``
                for six branches of its own size.
            single_init: Whether the first branch alone starts with a factor, 1, the others with 0.
            weight_scale: Multiplies the first weights (official ``init_hyper_para``).
            vector_scale: Its root multiplies the first factors (official ``init_hyper_gamma``).

        Raises:
            ConfigurationError: if no tap of the kernel lies at its centre, the internal channels
                are no multiple of the groups, or an argument is of another type.
        """
        _check_internal(internal_channels, shape.groups)
        check_count("depthwise_multiplier", depthwise_multiplier)
        check_choice("large_kernel", large_kernel, ("orepa", "plain", "branches"))
        check_flag("single_init", single_init)
        check_factor("weight_scale", weight_scale)
        check_factor("vector_scale", vector_scale)
        builder = _Builder(
            internal_channels, depthwise_multiplier, single_init, weight_scale, vector_scale
        )
        tree = nn.Sequential()
        tree.add_module("pad", Pad(shape.padding))
        if max(shape.kernel_size) == 1:
            tree.add_module("sum", builder.pointwise_form(shape.unpadded()))
        elif min(shape.kernel_size) < _LARGE or large_kernel == "branches":
            tree.add_module("sum", builder.six_branches(shape.unpadded()))
        else:
            sizes = small_sizes(shape)
            parts = in_series(shape, sizes, [shape.out_channels] * (len(sizes) - 1))
            is_plain = large_kernel == "plain"
            for number, part in enumerate(parts):
                kernel = part.conv() if is_plain else builder.six_branches(part)
                tree.add_module(f"kernel{number}", kernel)
        return one_kernel(shape, tree, norm=True)

    def of_official(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return official weights with the values of ours, each row of ``vector`` by its branch.

        Kernels of a series after the first are turned, outputs of groups stand in turn (depthwise).

        Raises:
            CheckpointError: if a buffer holds something else than this block.
        """
        found: dict[str, Tensor] = {}
        for name, value in state.items():
            kind = name.rpartition(".")[2]
            if kind == "vector" and len(value) == len(_STARTS):
                found |= {f"{name}.{b}": row for b, row in zip(_STARTS, value, strict=True)}
            elif kind in _BUFFERS:
                if not (value - _fixed(kind, value, self.shape)).abs().max() < _ROUNDING:
                    raise CheckpointError(
                        f"{name} of the checkpoint is not what is fixed here: the official code "
                        "has others for odd channels and for kernels that are not 3 x 3."
                    )
            else:
                found[name] = self._of_official(name, value)
        return found

    def _of_official(self, name: str, value: Tensor) -> Tensor:
        if name.endswith("weight_orepa_gconv_pw") and len(value) % self.shape.groups == 0:
            return value.view(-1, self.shape.groups, *value.shape[1:]).transpose(0, 1).flatten(0, 1)
        if not _LATER.match(name):
            return value
        if name.endswith(".weight_orepa_pfir_conv"):
            filters = _prior(value.new_empty(len(value), 3, 3), self.shape)
            is_odd = (filters * filters.flip(1, 2)).sum((1, 2)) < 0
            return torch.where(is_odd.view(-1, 1, 1, 1), -value, value)
        return value.flip(*range(2, value.ndim)) if value.ndim > 2 else value

    def decayed_parameters(self) -> tuple[str, ...]:
        """Return the names of the factors, which weight decay acts on in the official code, too."""
        return tuple(name for name, _ in self.named_parameters() if name.endswith(".scale.weight"))


def _check_internal(internal: int | None, groups: int) -> None:
    if internal is not None and (type(internal) is not int or internal < 1 or internal % groups):
        raise ConfigurationError(
            f"internal_channels must be a multiple of the {groups} groups, got {internal!r}."
        )


@dataclass(frozen=True)
class _Builder:
    """The branches of shapes without padding, with the first values of the official code."""

    internal_channels: int | None
    depthwise_multiplier: int
    single_init: bool
    weight_scale: float
    vector_scale: float

    def six_branches(self, shape: ConvShape) -> Sum:
        """Return the branches of a k x k kernel."""
        out_channels = shape.out_channels
        mixed = shape.pointwise(out_channels)
        filters = cosine_filters(replace(shape, in_channels=out_channels, groups=out_channels))
        average = AveragePool(shape.kernel_size, shape.stride, shape.dilation)
        branches: dict[str, tuple[nn.Module, ...]] = {
            "origin": (self._random(shape),),
            "average": (self._random(mixed), average),
            "prior": (self._random(mixed), filters),
            "pointwise_kxk": self._pointwise_kxk(shape),
            "pointwise": (self._random(shape.resized(1)),),
            "depthwise": self._depthwise(shape),
        }
        return self._scaled(branches, _STARTS, out_channels)

    def pointwise_form(self, shape: ConvShape) -> Sum:
        """Return the branches of a 1 x 1 kernel; the square one of two in a row is an identity."""
        inside = min(shape.in_channels, shape.out_channels)
        first, second = shape.pointwise(inside), replace(shape, in_channels=inside)
        is_wider = shape.out_channels > shape.in_channels
        series = (
            _identity(first) if is_wider else self._random(first, slope=1.0),
            self._random(second, slope=1.0) if is_wider else _identity(second),
        )
        branches = {"origin": (self._random(shape, slope=1.0),), "pointwise_pointwise": series}
        return self._scaled(branches, _POINTWISE_STARTS, shape.out_channels)

    def _pointwise_kxk(self, shape: ConvShape) -> tuple[nn.Module, ...]:
        internal = self.internal_channels
        if internal is None:
            internal = shape.in_channels * (1 if shape.groups <= 4 else 2)
        identity: nn.Module = nn.Identity()
        if internal != shape.in_channels:
            identity = RepeatChannels(shape.in_channels, internal, shape.groups)
        delta = shape.pointwise(internal).conv()
        nn.init.zeros_(_weight(delta))
        first = Sum({"identity": identity, "delta": delta})
        return first, self._random(replace(shape, in_channels=internal))

    def _depthwise(self, shape: ConvShape) -> tuple[nn.Module, ...]:
        channels = shape.in_channels * self.depthwise_multiplier
        first = replace(shape, out_channels=channels, groups=shape.in_channels)
        second = replace(shape, in_channels=channels).pointwise(shape.out_channels)
        return self._random(first, factors=2), self._random(second, factors=2)

    def _random(self, shape: ConvShape, slope: float = 0.0, factors: int = 1) -> nn.Module:
        """Return a convolution, one of so many in a row that the scale of the weights is for."""
        series = shape.conv()
        nn.init.kaiming_uniform_(_weight(series), a=slope)
        with torch.no_grad():
            _weight(series).mul_(self.weight_scale ** (1 / factors))
        return series

    def _scaled(
        self,
        branches: dict[str, tuple[nn.Module, ...]],
        starts: dict[str, float],
        channels: int,
    ) -> Sum:
        total = Sum()
        for name, steps in branches.items():
            start = starts[name] * sqrt(self.vector_scale)
            series = nn.Sequential()
            for number, step in enumerate(steps):
                series.add_module(f"step{number}", step)
            only = float(name == "origin")
            series.add_module("scale", Scale(channels, only if self.single_init else start))
            total[name] = series
        return total


def _identity(shape: ConvShape) -> nn.Module:
    """Return a square 1 x 1 convolution that starts as the identity, and is trained."""
    series = shape.conv()
    nn.init.dirac_(_weight(series), shape.groups)
    return series


def _weight(conv: nn.Module) -> nn.Parameter:
    return next(conv.parameters())


def _fixed(kind: str, like: Tensor, shape: ConvShape) -> Tensor:
    """Return what an official buffer holds, from what this block has in its place."""
    if kind == "weight_orepa_prior":
        return _prior(like, shape)
    if kind == "weight_orepa_avg_avg":
        return torch.full_like(like, 1 / like.numel())
    width = like.shape[1]
    order = torch.arange(len(like)) % (len(like) // shape.groups) % width
    return torch.eye(width)[order].view(-1, width, *(1,) * shape.ndim).to(like)


def _prior(like: Tensor, shape: ConvShape) -> Tensor:
    """Return the cosine filters of the size of ``like``, ``(O, *k)``."""
    channels, *sizes = like.shape
    shape = replace(shape, in_channels=channels, groups=channels, kernel_size=tuple(sizes))
    return cosine_filters(shape).weight(like)[:, 0]
