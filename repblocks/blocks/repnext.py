"""RepNeXt: mixed depthwise kernels, a pointwise bottleneck, and a shortcut through the activation.

``y = DropPath(pw2(a(pw1(N(dw(x)))))) + a(x)``: the same activation acts on both paths, so that the
shortcut can be folded into the convolutions as dirac channels.

Source:
    The shortcut expansion is that of Meng et al., RMNet, 2021, https://arxiv.org/abs/2111.00687.
    The block has nothing to do with the chunked RepNeXt of Zhao et al., 2024,
    https://arxiv.org/abs/2406.16004.

Differences: every number of chunks, and any conv block in the place of the chunked kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.kernel import Conv, ConvKernel
from repblocks.algebra.rules import apply, check_call
from repblocks.algebra.shortcut import expand_shortcut
from repblocks.algebra.special import CONV_CLASSES
from repblocks.blocks._base import ConvBlock, RepBlock, deployed_conv
from repblocks.blocks._registry import create_block, register_stage_block
from repblocks.blocks._stage import check_own_options, create_drop_path, may_drop
from repblocks.blocks._tail import ACTIVATIONS, create_activation
from repblocks.branches import ConvShape, SplitConcat, check_count
from repblocks.errors import ConfigurationError, NotFoldable

SHORTCUTS = ("add", "expand")


@final
class MixedKernelBlock(ConvBlock):
    """Chunks of the channels, each with a depthwise kernel of its own size, and one BatchNorm.

    Not registered: it is the part of :class:`RepNeXtBlock` that a conv block can take the place of.
    """

    @classmethod
    def build_branches(
        cls, shape: ConvShape, *, kernel_sizes: Sequence[int] = (7, 5, 3)
    ) -> nn.Module:
        """Return the chunks, whose sizes differ by at most one channel, and the BatchNorm."""
        channels, chunks = shape.in_channels, len(kernel_sizes)
        sizes = [channels // chunks + (i < channels % chunks) for i in range(chunks)]
        convs = [
            ConvShape.create(size, size, kernel, groups=size, ndim=shape.ndim).conv()
            for size, kernel in zip(sizes, kernel_sizes, strict=True)
        ]
        norm = shape.norm()
        norm.eps = 1e-6  # type: ignore[assignment] # a BatchNorm's float
        series = nn.Sequential()
        series.add_module("chunks", SplitConcat(sizes, convs))
        series.add_module("norm", norm)
        return series


@final
@register_stage_block("repnext")
class RepNeXtBlock(RepBlock):
    """Depthwise mixer, pointwise C -> expansion * C -> C, and the activated shortcut.

    Args:
        dim: C, at least the number of chunks.
        kernel_sizes: Odd kernel size of each chunk of the channels.
        expansion: Hidden channels as a multiple of C.
        activation: A torch activation in lower case.
        drop_path: Probability of leaving out the main path of a sample in training.
        deploy_shortcut: ``"add"`` keeps the addition (8C² + 49C multiply-adds a position with the
            defaults), ``"expand"`` folds it into the convolutions (15C² + 98C); it may be set
            until the block is switched.
        block: A conv block for the depthwise mixer, by name; None for the chunks.
        block_options: Options of that conv block.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the mixer computes its branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_sizes: Sequence[int] = (7, 5, 3),
        expansion: int = 4,
        activation: str = "gelu",
        drop_path: float = 0.0,
        deploy_shortcut: str = "add",
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(kernel_sizes, Sequence):
            raise ConfigurationError(
                f"kernel_sizes must be a list, one size for each chunk, got {kernel_sizes!r}."
            )
        if not kernel_sizes or dim < len(kernel_sizes):
            raise ConfigurationError(
                f"dim must be at least the number of kernel sizes, got {dim} channels for "
                f"{len(kernel_sizes)} kernel sizes."
            )
        check_count("expansion", expansion)
        _check_block_options(block, block_options or {})
        self.ndim = ndim
        self.deploy_shortcut = deploy_shortcut
        check_shortcut(deploy_shortcut)
        shape: dict[str, Any] = {
            "groups": dim,
            "ndim": ndim,
            "activation": None,
            "se": None,
            "execution": execution,
        }
        largest = max(kernel_sizes)
        self.mixer: nn.Module | None = (
            MixedKernelBlock(dim, dim, largest, kernel_sizes=kernel_sizes, **shape)
            if block is None
            else create_block(block, dim, dim, largest, **shape, **(block_options or {}))
        )
        conv = CONV_CLASSES[ndim]
        self.pw1: Conv = conv(dim, expansion * dim, 1)
        self.act = create_activation(activation)
        self.pw2: Conv = conv(expansion * dim, dim, 1)
        self.drop_path = create_drop_path(drop_path)
        self.conv: Conv | None = None

    @property
    def is_deployed(self) -> bool:
        """Whether the mixer has become one convolution."""
        return self.mixer is None

    @property
    def _adds(self) -> bool:
        """Whether the shortcut is added; the expanded form carries it in its channels."""
        return self.pw1.in_channels == self.pw2.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        mixed = self.conv if self.mixer is None else self.mixer
        y: Tensor = self.pw2(self.act(self.pw1(mixed(x))))  # type: ignore[misc]
        return self.drop_path(y) + self.act(x) if self._adds else y

    def _fold(self) -> Mapping[str, nn.Module | None]:
        check_shortcut(self.deploy_shortcut)
        kernels = [_mixer_kernel(self.mixer)]
        expands = self.deploy_shortcut == "expand"
        drops = may_drop(self.drop_path)
        if expands:
            if drops:
                raise NotFoldable(
                    "The shortcut is expanded across a drop path that does nothing in evaluation "
                    f'mode, got {self.drop_path}; deploy_shortcut="add" keeps it.'
                )
            _check_elementwise(self.act)
            for conv in (self.pw1, self.pw2):
                value = AffineMap.identity(kernels[-1].out_channels).with_axes(self.ndim)
                value = apply(conv, value, kernels[0].weight)
                kernels.append(ConvKernel.from_affine(value, kernels[0].weight))
            kernels = expand_shortcut(kernels)
        names, replaced = ("conv", "pw1", "pw2"), (self.mixer, self.pw1, self.pw2)
        parts = {
            name: deployed_conv(kernel, module)  # type: ignore[arg-type] # the mixer is there
            for name, kernel, module in zip(names, kernels, replaced, strict=False)
        }
        return {"mixer": None, **parts} | ({} if drops else {"drop_path": nn.Identity()})


def _mixer_kernel(mixer: nn.Module | None) -> ConvKernel:
    """Return the kernel of the mixer, if it is nothing but the branches of a conv block."""
    if not isinstance(mixer, ConvBlock) or type(mixer).forward is not ConvBlock.forward:
        raise NotFoldable(f"The mixer must be a conv block with its own forward, got {mixer}.")
    check_call(mixer)
    check_call(mixer.tail)
    if len(mixer.tail):
        raise NotFoldable(
            f"The mixer must not have anything after its branches, got {mixer.tail}: it would be "
            "lost. Build its block with activation=None and se=None."
        )
    return mixer.equivalent_kernel(torch.float64)


def _check_elementwise(act: nn.Module) -> None:
    """Check that the activation may act on the carried channels with the others."""
    check_call(act)
    known = type(act) in (nn.Identity, *ACTIVATIONS.values())
    if not known or (isinstance(act, nn.PReLU) and act.num_parameters > 1):
        raise NotFoldable(
            "The shortcut is expanded across an activation that does the same to every value, got "
            f'{act}; deploy_shortcut="add" keeps it.'
        )


def _check_block_options(block: str | None, options: Mapping[str, Any]) -> None:
    """Check that the options are those that the block itself has: its place gives the rest."""
    if block is None:
        if options:
            raise ConfigurationError(
                f"block_options needs a block, got {dict(options)} without one. Name a conv "
                "block for the depthwise mixer, or leave the options out."
            )
        return
    check_own_options(block, options)


def check_shortcut(deploy_shortcut: str) -> None:
    """Check the name of a deployed form of the shortcut.

    Raises:
        ConfigurationError: if it is not one.
    """
    if deploy_shortcut not in SHORTCUTS:
        raise ConfigurationError(
            f"deploy_shortcut must be one of {', '.join(SHORTCUTS)}, got {deploy_shortcut!r}."
        )
