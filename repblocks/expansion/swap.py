"""Replace the convolutions of a network by new multi-branch blocks, before training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from repblocks.expansion.replacing import Where, check_options, new_block, replace_


def swap(
    model: nn.Module,
    block: str = "dbb",
    where: Where | None = None,
    example_input: Any = None,
    **block_options: Any,
) -> nn.Module:
    """Return a copy of a network in which convolutions have become blocks with new weights.

    A block stands in the place of its convolution, without an activation; the BatchNorm after the
    convolution becomes an identity, as each branch has its own, and the activation stays.

    Args:
        model: Any network; it is not changed.
        block: Name of a conv block.
        where: Tells by path and convolution which ones to replace; None for all whose kernel has
            more than one tap.
        example_input: A tensor or a tuple of the model's positional arguments, for networks whose
            code depends on sizes.
        block_options: Options of the block, ``se`` among them.

    Returns:
        The copy, in the modes of the original. Its attribute ``swap_report`` is a list of
        :class:`~repblocks.expansion.replacing.Replacement`: which convolutions were left, and why.

    Raises:
        ConfigurationError: if no convolution was replaced, or an option is the network's own.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """
    check_options(block_options)
    swapped = copy.deepcopy(model)
    with torch.inference_mode(False):
        swapped.swap_report = replace_(  # type: ignore[assignment] # a plain attribute
            swapped,
            lambda place: new_block(block, place.conv, block_options),
            where,
            example_input,
        )
    return swapped
