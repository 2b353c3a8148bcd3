"""Expand the convolutions of a trained network into multi-branch blocks of the same function."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.algebra import is_batch_norm
from repblocks.blocks import ConvBlock
from repblocks.errors import NotFoldable
from repblocks.expansion.batches import fitted, read_inputs
from repblocks.expansion.places import Place
from repblocks.expansion.replacing import Where, check_options, new_block, replace_
from repblocks.expansion.solving import set_to_kernel_, solve_
from repblocks.expansion.statistics import calibrate_

#: Batches that the statistics are measured on.
NUM_BATCHES = 4


def expand(
    model: nn.Module,
    block: str = "repvgg",
    data: Iterable[Any] | None = None,
    where: Where | None = None,
    example_input: Any = None,
    **block_options: Any,
) -> nn.Module:
    """Return a copy of a trained network in which convolutions have become blocks.

    In evaluation mode it computes what ``model`` computes. In training mode it does so up to the
    noise of a batch, if there is data to measure the statistics of its BatchNorms on. A block
    stands in the place of its convolution; the BatchNorm after it, whose function the block takes
    over, becomes an identity. Folding the copy gives the architecture of the folded original; so a
    convolution that has neither a bias nor a BatchNorm after it is left unless ``where`` asks for
    it, as its block would bring a bias along.

    Args:
        model: Any network; it is not changed.
        block: Name of a conv block.
        data: Batches of inputs, or of tuples that start with them; the first 4 are used.
        where: Tells by path and convolution which ones to expand; None for all whose kernel has
            more than one tap and that have a bias, their own or that of a BatchNorm.
        example_input: A tensor or a tuple of the model's positional arguments, for networks whose
            code depends on sizes; the first batch by default.
        block_options: Options of the block.

    Returns:
        The copy, in the modes of the original. Its attribute ``expand_report`` is a list of
        :class:`~repblocks.expansion.replacing.Replacement`: which convolutions were left, and why.

    Raises:
        ConfigurationError: if no convolution was replaced, an option is the network's own, or the
            data has no batch.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """
    check_options(block_options, ["se"])
    if data is None:
        warnings.warn(
            "expand has no data to measure BatchNorm statistics on: evaluation mode is exact, but "
            "training starts from another function. Pass data=loader.",
            stacklevel=2,
        )
    inputs = [] if data is None else list(read_inputs(data, NUM_BATCHES))
    expanded = copy.deepcopy(model)
    made: list[tuple[ConvBlock, Place]] = []

    def create(place: Place) -> ConvBlock:
        if where is None and not place.has_bias:
            raise NotFoldable(
                "It has neither a bias nor a BatchNorm after it, and its block would bring one "
                "along; ask for it by where."
            )
        new = new_block(block, place.conv, block_options)
        set_to_kernel_(new, place.kernel())
        made.append((new.requires_grad_(place.requires_grad), place))
        return new

    with torch.inference_mode(False):
        if example_input is None and inputs:
            example_input = fitted(expanded, inputs[0])
        expanded.expand_report = replace_(  # type: ignore[assignment] # a plain attribute
            expanded, create, where, example_input
        )
        _calibrate_(expanded, made, inputs)
    return expanded


def _calibrate_(
    model: nn.Module, made: Sequence[tuple[ConvBlock, Place]], inputs: Sequence[Tensor]
) -> None:
    # Those that were there before as well, as the data may be other than what they were trained on.
    norms = [m for m in model.modules() if is_batch_norm(m) and m.affine and m.track_running_stats]
    calibrate_(model, norms, inputs)
    if inputs:
        for block, place in made:
            # Once more: the main branch also takes what rounding did to the others.
            solve_(block, place.kernel())
