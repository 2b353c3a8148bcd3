"""The places of a network where a block stands, whichever block it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from repblocks.blocks import CONV_BLOCKS, create_block
from repblocks.errors import ConfigurationError


@dataclass(frozen=True)
class Slot:
    """What is put where a network has a convolution.

    Args:
        block: Name of a conv block.
        options: Options of that block; ``kernel_size`` among them replaces the kernel size of each
            place larger than 1.

    Raises:
        UnknownNameError: if no conv block has the name.
    """

    block: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        CONV_BLOCKS[self.block]

    @classmethod
    def create(
        cls,
        block: str | None,
        options: Mapping[str, Any] | None,
        default: str,
        default_options: Mapping[str, Any] | None = None,
    ) -> Slot:
        """Return the slot of a network; None takes its own block, with options over its own."""
        if block is None:
            return cls(default, {**(default_options or {}), **(options or {})})
        return cls(block, options or {})

    def __call__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, **shape: Any
    ) -> nn.Module:
        """Return a new block for a place; ``se=None`` leaves it to the block."""
        options = dict(self.options)
        chosen = options.pop("kernel_size", None)
        if chosen is not None and kernel_size > 1:
            kernel_size = chosen
        given = sorted({"in_channels", "out_channels", "stride", *shape} & options.keys())
        if given:
            raise ConfigurationError(
                f"block_options must leave out what the network sets, got {', '.join(given)}."
            )
        if shape.get("se", 0) is None:
            del shape["se"]  # the block's own
        return create_block(
            self.block, in_channels, out_channels, kernel_size, stride, **shape, **options
        )

    def of_stage(self, kernel_size: int) -> tuple[int, dict[str, Any]]:
        """Return the kernel size of a place inside a stage block, and what names the block.

        Args:
            kernel_size: What the place has itself.
        """
        options = dict(self.options)
        size = options.pop("kernel_size", kernel_size)
        return size, {"block": self.block, "block_options": options}
