"""RepMLP: a fully connected layer over patches beside convolutions of them, and a bottleneck.

``y = x + g(N(x)) * F(N(x))`` and then ``y + pw2(a(pw1(N(y))))``. ``F`` sees each patch of h x w
positions as h * w values: a fully connected layer with BatchNorm, and beside it convolutions of the
patch with BatchNorm, which end at its border and become a matrix of the same layer. ``g`` is
squeeze-and-excitation of the whole image. The layer is shared: channel c has the weights of set
``c mod S``.

Source:
    Ding et al., RepMLPNet, CVPR 2022, section 3, https://arxiv.org/abs/2112.11081
    Official code: https://github.com/DingXiaoH/RepMLP

Differences: patches need not be square, and become the right matrix then; ``switch_to_deploy`` may
be called twice; an image that does not part into patches is refused with both sizes, as the layer
is made for one size; the BatchNorm before the bottleneck folds into it, and the first one into a
factor and a summand for each channel, where the official code leaves both; 1-d and 3-d.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import final

from torch import Tensor, nn

from repblocks.algebra.kernel import per_axis
from repblocks.blocks._base import Executed
from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import Affine, StageBlock, hidden_channels, pointwise
from repblocks.blocks._tail import SqueezeExcite, create_activation
from repblocks.branches import ConvShape, OnPatches, Size, Sum, check_count, check_kernel_sizes
from repblocks.errors import ConfigurationError
from repblocks.execution import execute


@final
@register_stage_block("rep_mlp")
class RepMLPBlock(StageBlock, Executed):
    """A layer over patches and convolutions of them, gated; then a pointwise bottleneck.

    Args:
        dim: C.
        patch_size: Positions of a patch; images are whole numbers of patches high and wide. In
            RepMLPNet a patch is the whole image.
        kernel_sizes: Odd numbers of taps of the convolutions beside the layer.
        num_sets: S, the sets of weights that the channels share; divides C.
        se: Hidden channels of the gates as a fraction of C.
        mlp_ratio: Hidden channels of the bottleneck as a multiple of C; None for none.
        activation: Of the bottleneck, a torch activation in lower case.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the layer and the convolutions beside it are computed in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        patch_size: Size = 7,
        kernel_sizes: Sequence[int] = (1, 3),
        num_sets: int = 1,
        se: float = 0.25,
        mlp_ratio: float | None = 4.0,
        activation: str = "gelu",
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        self.execution = execution
        check_count("dim", dim)
        check_count("num_sets", num_sets)
        if dim % num_sets:
            raise ConfigurationError(f"num_sets must divide dim, got {num_sets} for {dim}.")
        shape = ConvShape.create(dim, dim, 1, ndim=ndim)
        self.patch_size = per_axis("patch_size", patch_size, ndim)
        for size in self.patch_size:
            check_count("patch_size", size)
        self.norm: nn.Module = Affine(dim, ndim, norm=shape.norm())
        self.gate = SqueezeExcite(dim, se, ndim)
        self.values = num_sets * prod(self.patch_size)
        branches = self._branches(num_sets, kernel_sizes)
        self.mixer: nn.Module = Affine(self.values, 1, sum=Sum(branches))
        self.mlp: nn.Module | None = None
        if mlp_ratio is not None:
            hidden = hidden_channels(dim, mlp_ratio)
            self.mlp = nn.Sequential(
                Affine(dim, ndim, **pointwise(dim, hidden, ndim, norm_first=True)),
                create_activation(activation),
                Affine(hidden, ndim, **pointwise(hidden, dim, ndim)),
            )

    def _branches(self, num_sets: int, kernel_sizes: Sequence[int]) -> dict[str, nn.Module]:
        ndim = len(self.patch_size)
        check_kernel_sizes(kernel_sizes, len(kernel_sizes))

        def on_patches(branch: nn.Module) -> OnPatches:
            return OnPatches(branch, num_sets, self.patch_size)

        shapes = [
            ConvShape.create(num_sets, num_sets, size, groups=num_sets, ndim=ndim)
            for size in (1, *kernel_sizes)
        ]
        layer = nn.Conv1d(self.values, self.values, 1, groups=num_sets, bias=False)
        normed = nn.Sequential(layer, on_patches(shapes[0].norm()))
        convs = {f"conv{i}": on_patches(s.conv_norm()) for i, s in enumerate(shapes[1:])}
        return {"layer": normed, **convs}

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``.

        Raises:
            ConfigurationError: if the image does not part into patches.
        """
        normed = self.norm(x)
        y: Tensor = x + self._mixed(normed) * self.gate.gates(normed)
        return y if self.mlp is None else y + self.mlp(y)

    def _mixed(self, x: Tensor) -> Tensor:
        """Put each patch through the layer."""
        sizes = tuple(x.shape[2:])
        if any(size % own for size, own in zip(sizes, self.patch_size, strict=True)):
            raise ConfigurationError(
                f"The image must be a whole number of patches of {self.patch_size} positions, got "
                f"one of {sizes}; the layer is made for one patch_size, so build the network for "
                "the size of its images."
            )
        ndim, channels = len(sizes), x.shape[1]
        counts = [size // own for size, own in zip(sizes, self.patch_size, strict=True)]
        # (N, C, n1, h1, n2, h2, ...) to (N, n1, n2, ..., C, h1, h2, ...) and back
        parts = [value for pair in zip(counts, self.patch_size, strict=True) for value in pair]
        first = [0, *range(2, 2 + 2 * ndim, 2), 1, *range(3, 3 + 2 * ndim, 2)]
        back = [0, 1 + ndim, *(i for n in range(ndim) for i in (1 + n, 2 + ndim + n))]
        patches = x.reshape(-1, channels, *parts).permute(first)
        mixed = execute(self.mixer, patches.reshape(-1, self.values, 1), self.execution)
        return mixed.reshape(-1, *counts, channels, *self.patch_size).permute(back).reshape(x.shape)
