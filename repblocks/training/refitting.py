"""Give an optimizer the parameters of a network that has gained some and lost some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from repblocks.errors import ConfigurationError


@dataclass(frozen=True)
class Refitted:
    """What an optimizer gained and lost.

    Args:
        added: Parameters that it has no state of yet.
        removed: Parameters whose state was dropped.
    """

    added: tuple[nn.Parameter, ...]
    removed: tuple[nn.Parameter, ...]


def refit_(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> Refitted:
    """Give an optimizer the parameters that a network has now, in place.

    Those that stay keep their state, new ones have none yet, and that of removed ones is dropped.
    The groups keep their options, such as the learning rate.

    Args:
        optimizer: Of the network before.
        groups: Those of an optimizer that is built for the network now, in the same order.

    Raises:
        ConfigurationError: if there is another number of groups.
    """
    if len(groups) != len(optimizer.param_groups):
        raise ConfigurationError(
            f"groups must be as many as the optimizer has, {len(optimizer.param_groups)}, got "
            f"{len(groups)}."
        )
    before = [p for group in optimizer.param_groups for p in group["params"]]
    after = [p for group in groups for p in group["params"]]
    for own, wanted in zip(optimizer.param_groups, groups, strict=True):
        own["params"] = list(wanted["params"])
    was, stays = set(before), set(after)
    removed = tuple(p for p in before if p not in stays)
    for parameter in removed:
        optimizer.state.pop(parameter, None)
    return Refitted(tuple(p for p in after if p not in was), removed)
