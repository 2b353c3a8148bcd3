"""Put blocks in the places of a network's convolutions, and say what became of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from repblocks.algebra.kernel import Conv, conv_padding
from repblocks.blocks import CONV_BLOCKS, ConvBlock
from repblocks.branches import CHANNELS_LAST
from repblocks.errors import ConfigurationError, NotFoldable, UnknownNameError
from repblocks.expansion.places import Place, find_places

Where = Callable[[str, Conv], bool]
_FIXED = set(inspect.signature(ConvBlock.__init__).parameters) - {"se", "options"}


@dataclass(frozen=True)
class Replacement:
    """What became of one convolution.

    Args:
        path: Where it stands in the network.
        done: Whether a block stands there now.
        reason: Why not; empty if it does.
    """

    path: str
    done: bool
    reason: str = ""


def has_extent(path: str, conv: Conv) -> bool:
    """Tell whether a kernel has more than one tap: what is replaced if nothing else is said."""
    del path
    return max(conv.kernel_size) > 1


def replace_(
    model: nn.Module, create: Callable[[Place], ConvBlock], where: Where | None, example_input: Any
) -> list[Replacement]:
    """Put blocks in the places of convolutions, and identities in those of their BatchNorms.

    Args:
        model: Is changed.
        create: Makes the block for a place; a refusal is the reason why that place is left.
        where: Tells by path and convolution whether to replace it; None for kernels of more than
            one tap.
        example_input: What the model is traced with; may be None.

    Raises:
        ConfigurationError: if no convolution was replaced.
        UnknownNameError: if there is no such block or option.
    """
    places = list(find_places(model, example_input))
    report = [_replace_one_(model, place, create, where or has_extent) for place in places]
    if not any(entry.done for entry in report):
        reasons = [f"{entry.path or 'the model'}: {entry.reason}" for entry in report[:3]]
        raise ConfigurationError(
            f"None of the {len(report)} convolutions of {type(model).__name__} was replaced. "
            + " ".join(reasons)
        )
    return report


def _replace_one_(
    model: nn.Module, place: Place, create: Callable[[Place], ConvBlock], where: Where
) -> Replacement:
    if not where(place.path, place.conv):
        return Replacement(place.path, False, "It was not asked for.")
    if place.obstacle:
        return Replacement(place.path, False, place.obstacle)
    try:
        block = create(place)
    except UnknownNameError:
        raise
    except (ConfigurationError, NotFoldable) as refusal:
        return Replacement(place.path, False, str(refusal))
    model.set_submodule(place.path, block.train(place.conv.training))
    if place.norm_path is not None and place.norm is not None:
        model.set_submodule(place.norm_path, nn.Identity().train(place.norm.training))
    return Replacement(place.path, True)


def new_block(name: str, conv: Conv, options: Mapping[str, Any]) -> ConvBlock:
    """Return a block of a convolution's shape, dtype, device and memory format; no activation.

    Squeeze-and-excitation is there only where the options ask for it.

    Raises:
        ConfigurationError: if the block refuses the shape, or an option belongs to the shape.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """
    block = CONV_BLOCKS[name](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        [low for low, _ in conv_padding(conv)],
        conv.dilation,
        conv.groups,
        ndim=len(conv.kernel_size),
        activation=None,
        **{"se": None, **options},
    )
    if not isinstance(block, ConvBlock):
        raise ConfigurationError(f"{name} must be a conv block, got {type(block).__name__}.")
    block.to(conv.weight.device, conv.weight.dtype)
    for ndim, memory_format in CHANNELS_LAST.items():
        is_last = conv.weight.ndim == ndim and not conv.weight.is_contiguous()
        if is_last and conv.weight.is_contiguous(memory_format=memory_format):
            block.to(memory_format=memory_format)
    return block


def check_options(options: Mapping[str, Any], others: Collection[str] = ()) -> None:
    """Check that no option is one that the convolution decides.

    Raises:
        ConfigurationError: if one is.
    """
    wrong = sorted((_FIXED | set(others)) & set(options))
    if wrong:
        raise ConfigurationError(
            f"{wrong[0]} is not an option here, got {options[wrong[0]]!r}: the network decides it."
        )
