"""The branches that a block was not made with: by name, so that a state dict tells them.

A grown branch ``"dbb.pointwise"`` is the branch ``dbb__pointwise`` of the sum of a block. A block
of a single branch becomes a sum when it grows, in which that branch is ``main``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from repblocks.algebra import is_batch_norm
from repblocks.algebra.kernel import Conv
from repblocks.blocks import CONV_BLOCKS, ConvBlock
from repblocks.branches import CHANNELS_LAST, ConvShape, Sum, without_norm
from repblocks.errors import ConfigurationError

_JOINT, _MAIN = "__", "main"


def is_grown(name: str) -> bool:
    """Tell whether a branch of this name is one that the block was not made with."""
    return _JOINT in name


def tree_of(block: ConvBlock) -> nn.Module:
    """Return the branches of a block.

    Raises:
        ConfigurationError: if it is in deployed form.
    """
    if block.branches is None:
        raise ConfigurationError(f"{type(block).__name__} is in deployed form, without branches.")
    return block.branches


def summed(block: ConvBlock) -> Sum:
    """Return the sum of the branches; for a single branch, a sum that the block does not hold."""
    tree = tree_of(block)
    inside = tree[0] if _is_normed_sum(tree) else tree  # type: ignore[index] # a Sequential
    return inside if isinstance(inside, Sum) else Sum({_MAIN: tree})


def hold_sum_(block: ConvBlock) -> None:
    """Make a sum of a single branch."""
    tree = tree_of(block)
    if not isinstance(tree, Sum) and not _is_normed_sum(tree):
        block.branches = Sum({_MAIN: tree})


def new_branches(block: ConvBlock, names: Iterable[str]) -> dict[str, nn.Module]:
    """Build branches that the block does not have, by the names that they get in it.

    They are of its dtype, device, mode and memory format. Left out are those that its shape does
    not allow, and, where one BatchNorm follows the sum, those that have no parameters without one.

    Raises:
        ConfigurationError: if a name is not that of a block and of one of its branches.
        UnknownNameError: if there is no such conv block.
    """
    tree = tree_of(block)
    like = next(module for module in tree.modules() if isinstance(module, Conv)).weight
    own, found = summed(block), {}
    for name in names:
        branch = _branch(block.shape, name)
        if branch is not None and _is_normed_sum(tree):
            branch = without_norm(branch)
        key = name.replace(".", _JOINT)
        if branch is None or key in own or not any(True for _ in branch.parameters()):
            continue
        branch.to(like.device, like.dtype).train(block.training).requires_grad_(like.requires_grad)
        last = CHANNELS_LAST.get(like.ndim)
        if last is not None and not like.is_contiguous():
            branch.to(memory_format=last)
        found[key] = branch
    return found


def match_branches_(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Give the blocks of a network the grown branches that a state dict has, and no others.

    It is for loading what a network has become in training. What else differs is left to the load.

    Args:
        model: The network, before it grew or after.
        state_dict: Of the same network at another time.
    """
    for path, block in [*model.named_modules()]:
        if isinstance(block, ConvBlock) and not block.is_deployed:
            prefix = f"{path}.branches." if path else "branches."
            _match_(block, [k.removeprefix(prefix) for k in state_dict if k.startswith(prefix)])


def _match_(block: ConvBlock, keys: Collection[str]) -> None:
    """Match one block with the keys below its branches."""
    if any(key.startswith(f"{_MAIN}.") for key in keys):
        hold_sum_(block)
    tree = tree_of(block)
    if _is_normed_sum(tree):
        first = next(name for name, _ in tree.named_children())
        keys = [key.removeprefix(f"{first}.") for key in keys if key.startswith(f"{first}.")]
    wanted = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    own = summed(block)
    for name in [name for name in own if is_grown(name) and name not in wanted]:
        del own[name]
    missing = [name.replace(_JOINT, ".") for name in wanted if is_grown(name)]
    own.update(new_branches(block, missing))
    if set(own) == set(wanted):  # in the order in which they were grown
        branches = {name: own[name] for name in wanted}
        own.clear()
        own.update(branches)
    if list(own) == [_MAIN] and _MAIN not in wanted:
        block.branches = own[_MAIN]


def _is_normed_sum(tree: nn.Module) -> bool:
    """Tell whether the branches are a sum with one BatchNorm after it."""
    is_pair = isinstance(tree, nn.Sequential) and len(tree) == 2
    return is_pair and isinstance(tree[0], Sum) and is_batch_norm(tree[1])  # type: ignore[index]


def _branch(shape: ConvShape, name: str) -> nn.Module | None:
    """Build one branch of another block, or None if its shape has none of that name."""
    block, _, branch = name.partition(".")
    cls = CONV_BLOCKS[block]
    tree = cls.build_branches(shape) if issubclass(cls, ConvBlock) else None
    if not isinstance(tree, Sum) or not branch:
        raise ConfigurationError(
            f"A new branch must be named by a block whose branches are a sum and one of them, such "
            f"as dbb.pointwise, got {name!r}."
        )
    return dict(tree.items()).get(branch)
