"""ECBSR: super-resolution by a stack of edge-oriented blocks; deployed, of 3 x 3 convolutions.

Source:
    Zhang et al., Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices,
    ACM MM 2021, section 3.3, https://doi.org/10.1145/3474085.3475291
    Official code: https://github.com/xindongzhang/ECBSR

The network maps images to images: it has no classifier and is not registered with timm.

Differences: images of any number of channels, each of which is added to its own pixels, where the
official code can add grey ones alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from repblocks.branches import check_count
from repblocks.models._network import fold_shapes
from repblocks.models._published import Published
from repblocks.models._rules import Rules, renamed
from repblocks.models._slots import Slot


@final
class ECBSR(Published):
    """3 x 3 blocks whose channels become pixels, added to the enlarged image.

    ``depth=4, width=16`` is the published M4C16.

    Args:
        scale: Factor of height and width: 2, 3, 4 and so on.
        depth: Blocks between the first and the last.
        width: Channels.
        activation: A torch activation in lower case, after each block but the last; ``"prelu"`` has
            a slope for each channel.
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
        for path, module in list(self.named_modules()):
            if type(module) is nn.PReLU:
                self.set_submodule(path, nn.PReLU(width))
        if deploy:
            fold_shapes(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to ``(N, C, scale * H, scale * W)``."""
        pixels = x.repeat_interleave(self.enlarge.upscale_factor**2, 1)
        enlarged: Tensor = self.enlarge(self.body(x) + pixels)
        return enlarged

    def official_rules(self) -> Rules:
        """Return the names of the official code, and what they are; its fixed filters are ours."""
        series, edges = "branches.expand_squeeze", r"\.conv1x1_(sbx|sby|lpl)"
        return (
            (r"^backbone\.(\d+)\.", r"body.\1."),
            (r"\.conv3x3\.", ".branches.kxk.conv."),
            (r"\.conv1x1_3x3\.k([01])$", rf".{series}.conv\1.conv.weight"),
            (r"\.conv1x1_3x3\.b([01])$", rf".{series}.conv\1.conv.bias"),
            (rf"{edges}\.mask$", None),
            (rf"{edges}\.k0$", lambda m: f".branches.{_EDGES[m[1]]}.pointwise.conv.weight"),
            (rf"{edges}\.b0$", lambda m: f".branches.{_EDGES[m[1]]}.pointwise.conv.bias"),
            (rf"{edges}\.scale$", lambda m: f".branches.{_EDGES[m[1]]}.scale.weight"),
            (rf"{edges}\.bias$", lambda m: f".branches.{_EDGES[m[1]]}.scale.bias"),
            (r"(?<!tail)\.act\.weight$", ".tail.act.weight"),
        )

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights in which a convolution that stands alone is a deployed one."""
        kxk, other = ".branches.kxk.conv", ".branches.expand_squeeze.conv0.conv.weight"
        paths = [name.removesuffix(f"{kxk}.weight") for name in state]
        alone = [f"{path}{kxk}" for path in paths if f"{path}{other}" not in state]
        return renamed(state, ((rf"{re.escape(kxk)}\.", ".conv."),), alone)


#: Which axis the official code's edges are along.
_EDGES = {"sby": "sobel0", "sbx": "sobel1", "lpl": "laplacian"}
