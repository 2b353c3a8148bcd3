"""RepCPE: a depthwise convolution of the positions, added to its input.

Source:
    Vasu et al., FastViT, ICCV 2023, section 3.2.3, https://arxiv.org/abs/2303.14189
    Chu et al., Conditional Positional Encodings for Vision Transformers, ICLR 2023,
    https://arxiv.org/abs/2102.10882
    Official code: https://github.com/apple/ml-fastvit

Differences: kernels that are not square keep the size of the input on each axis; 1-d and 3-d.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from repblocks.blocks._base import Executed
from repblocks.blocks._registry import register_stage_block
from repblocks.blocks._stage import Affine, StageBlock
from repblocks.branches import ConvShape, Size, Sum, check_count
from repblocks.execution import execute


@final
@register_stage_block("rep_cpe")
class RepCPEBlock(StageBlock, Executed):
    """Depthwise k x k with bias, and the input; one depthwise convolution when deployed.

    Args:
        dim: C.
        kernel_size: Odd numbers of taps.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the kernel and the input are added in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self, dim: int, *, kernel_size: Size = 7, ndim: int = 2, execution: str = "auto"
    ) -> None:
        super().__init__()
        self.execution = execution
        check_count("dim", dim)
        shape = ConvShape.create(dim, dim, kernel_size, groups=dim, ndim=ndim)
        both = Sum({"encoding": shape.conv(bias=True), "identity": nn.Identity()})
        self.conv: nn.Module = Affine(dim, ndim, sum=both)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        return execute(self.conv, x, self.execution)
