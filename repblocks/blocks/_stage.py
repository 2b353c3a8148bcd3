"""The contract of a stage block: it marks its affine parts, each of which becomes one convolution.

Everything that stands between two affine parts, such as an activation or squeeze-and-excitation,
stays as it is.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from repblocks.algebra.kernel import ConvKernel
from repblocks.blocks._base import ConvBlock, RepBlock, deployed_conv, kernel_of
from repblocks.blocks._registry import CONV_BLOCKS, create_block
from repblocks.branches import ConvShape, Scale, Size, check_factor
from repblocks.errors import ConfigurationError, UnknownNameError


class Affine(nn.Sequential):
    """Modules in a row that together are one convolution in evaluation mode.

    Args:
        in_channels: C_in.
        ndim: Number of spatial axes.
        parts: Modules that the table of rules knows, in order.
    """

    def __init__(self, in_channels: int, ndim: int, **parts: nn.Module) -> None:
        super().__init__(OrderedDict(parts))
        self.in_channels, self.ndim = in_channels, ndim

    def equivalent_kernel(self, dtype: torch.dtype | None = None) -> ConvKernel:
        """Return the kernel that computes what the parts compute in evaluation mode.

        Args:
            dtype: What to compute in, differentiably; the dtype of the weights by default.

        Raises:
            NotFoldable: if there is none.
        """
        return kernel_of(self, self.in_channels, self.ndim, dtype)


class StageBlock(RepBlock):
    """A block from C channels to C, with a stride of 1, whose affine parts fold one by one."""

    @property
    def is_deployed(self) -> bool:
        """Whether every affine part has become one convolution."""
        return not any(isinstance(module, Affine) for module in self.modules())

    def affine_parts(self) -> Iterator[tuple[str, Affine]]:
        """Yield each affine part with its path."""
        for path, module in self.named_modules():
            if isinstance(module, Affine):
                yield path, module

    def _fold(self) -> Mapping[str, nn.Module | None]:
        parts: dict[str, nn.Module | None] = {
            path: deployed_conv(part.equivalent_kernel(torch.float64), part)
            for path, part in self.affine_parts()
        }
        idle = [path for path, module in self.named_modules() if _is_idle_drop_path(module)]
        return parts | {path: nn.Identity() for path in idle}


def pointwise(
    in_channels: int, out_channels: int, ndim: int, *, norm_first: bool = False
) -> dict[str, nn.Module]:
    """Return the parts of a 1 x 1 convolution with BatchNorm, for :class:`Affine`.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        ndim: Number of spatial axes.
        norm_first: Whether a BatchNorm of the input comes before; nothing is padded in between, so
            that it folds, too.
    """
    shape = ConvShape.create(in_channels, out_channels, 1, ndim=ndim)
    before = {"norm_before": shape.pointwise(in_channels).norm()} if norm_first else {}
    block = create_block("plain", in_channels, out_channels, 1, ndim=ndim, activation=None)
    return {**before, "conv": block}


def depthwise_block(
    name: str,
    dim: int,
    kernel_size: Size,
    ndim: int,
    *,
    block: str | None = None,
    block_options: Mapping[str, Any] | None = None,
    execution: str = "auto",
    **own: Any,
) -> nn.Module:
    """Return a depthwise conv block that is affine, for :class:`Affine`.

    Args:
        name: The conv block that the place has itself.
        dim: C.
        kernel_size: Odd numbers of taps.
        ndim: Number of spatial axes.
        block: Another conv block by name; None for the place's own.
        block_options: Options of the block, over those that the place has for its own.
        execution: How the block computes its branches in training.
        own: Options of the place for its own block.

    Raises:
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """
    chosen = name if block is None else block
    check_own_options(chosen, block_options or {})
    options = {**(own if block is None else {}), **(block_options or {})}
    shape = {"groups": dim, "ndim": ndim, "activation": None, "se": None, "execution": execution}
    return create_block(chosen, dim, dim, kernel_size, **shape, **options)


def check_own_options(block: str, options: Mapping[str, Any]) -> None:
    """Check that options are those that a conv block itself has: its place gives the rest.

    Raises:
        UnknownNameError: if no conv block has the name, or for the first option that is none.
    """
    common = inspect.signature(ConvBlock.__init__).parameters
    own = [name for name in inspect.signature(CONV_BLOCKS[block]).parameters if name not in common]
    for name in options:
        if name not in own:
            raise UnknownNameError(f"option of {block!r} in its place", name, own)


def create_layer_scale(dim: int, start: float | None) -> dict[str, nn.Module]:
    """Return a factor for each channel, for :class:`Affine`; nothing for a start of None.

    Args:
        dim: C.
        start: First value of the factors, the option ``layer_scale`` of a block.

    Raises:
        ConfigurationError: if it is not above 0.
    """
    if start is None:
        return {}
    check_factor("layer_scale", start)
    return {"scale": Scale(dim, start)}


def hidden_channels(dim: int, ratio: float, name: str = "mlp_ratio") -> int:
    """Return the channels between two pointwise convolutions, ``int(dim * ratio)``.

    Raises:
        ConfigurationError: if there is none.
    """
    is_number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if not is_number or not int(dim * ratio) >= 1:
        raise ConfigurationError(
            f"{name} must be a number that leaves at least one of {dim} channels, got {ratio!r}."
        )
    return int(dim * ratio)


def create_drop_path(probability: float) -> nn.Module:
    """Return a module that leaves out the main path of a sample in training.

    Raises:
        ConfigurationError: if the probability is not in [0, 1).
    """
    if not isinstance(probability, int | float) or not 0 <= probability < 1:
        raise ConfigurationError(f"drop_path must be in [0, 1), got {probability!r}.")
    if probability == 0.0:
        return nn.Identity()
    from timm.layers import DropPath

    return DropPath(probability)


def _is_idle_drop_path(module: nn.Module) -> bool:
    return type(module).__name__ == "DropPath" and not may_drop(module)


def may_drop(path: nn.Module) -> bool:
    """Tell whether a drop path may do something in evaluation mode."""
    from timm.layers import DropPath

    has_hooks = path._forward_hooks or path._forward_pre_hooks or "forward" in vars(path)
    return type(path) not in (nn.Identity, DropPath) or path.training or bool(has_hooks)
