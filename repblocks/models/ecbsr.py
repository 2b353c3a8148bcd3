"""ECBSR: super-resolution by a stack of edge-oriented blocks; deployed, of 3 x 3 convolutions.

Source:
    Zhang et al., Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices,
    ACM MM 2021, section 3.3, https://doi.org/10.1145/3474085.3475291
    Official code: https://github.com/xindongzhang/ECBSR

The network maps images to images: it has no classifier and is not registered with timm.

Differences: images of any number of channels, each of which is added to its own pixels, where the
official code can add grey ones alone; one slope in each PReLU, where it has one for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from repblocks.branches import check_count
from repblocks.models._network import fold_shapes
from repblocks.models._slots import Slot


@final
class ECBSR(nn.Module):
    """3 x 3 blocks whose channels become pixels, added to the enlarged image.

    ``depth=4, width=16`` is the published M4C16.

    Args:
        scale: Factor of height and width: 2, 3, 4 and so on.
        depth: Blocks between the first and the last.
        width: Channels.
        activation: A torch activation in lower case, after each block but the last.
        block: A conv block by name for all places; None for ``ecb`` without BatchNorm.
        block_options: Options of the block.
        in_chans: Channels of the images; 1 for the luminance.
        deploy: Build the deployed form.

    Raises:
        ConfigurationError: if an argument is out of range.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """

    def __init__(
        self,
        scale: int,
        *,
        depth: int = 4,
        width: int = 16,
        activation: str = "prelu",
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        in_chans: int = 1,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        check_count("scale", scale)
        check_count("depth", depth, 0)
        slot = Slot.create(block, block_options, "ecb", {"norm": False})
        self.body = nn.Sequential(slot(in_chans, width, 3, activation=activation))
        self.body.extend(slot(width, width, 3, activation=activation) for _ in range(depth))
        self.body.append(slot(width, in_chans * scale**2, 3, activation=None))
        self.enlarge = nn.PixelShuffle(scale)
        if deploy:
            fold_shapes(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to ``(N, C, scale * H, scale * W)``."""
        pixels = x.repeat_interleave(self.enlarge.upscale_factor**2, 1)
        enlarged: Tensor = self.enlarge(self.body(x) + pixels)
        return enlarged
