"""Rules that turn foreign names of weights into ours, those that several networks share."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from repblocks.errors import CheckpointError

#: Patterns, and what takes their place; None drops the weight. Our own names stay what they are.
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str] | None]]

SE_RULES: Rules = (
    (
        r"(?<!\.tail)\.(attn|se|post_se|se_layer)\.(fc1|down|reduce|conv1\.conv)\.",
        ".tail.se.reduce.",
    ),
    (
        r"(?<!\.tail)\.(attn|se|post_se|se_layer)\.(fc2|up|expand|conv2\.conv)\.",
        ".tail.se.expand.",
    ),
)
MOBILEONE_RULES: Rules = (
    (r"\.(rbr_conv|conv_kxk|branch_conv_list)\.(\d+)\.", r".branches.kxk\2."),
    (r"\.(rbr_scale|conv_scale|branch_scale)\.", ".branches.scale."),
    (r"(?<!branches)\.(rbr_skip|identity|branch_norm)\.", ".branches.identity.norm."),
    (r"\.(reparam_conv|branch_reparam)\.", ".conv."),
    (r"\.bn\.", ".norm."),
)
#: A convolution ``c`` and its norm ``bn``, or what they have become.
PLAIN_RULES: Rules = (
    (r"\.c\.weight$", ".branches.conv.weight"),
    (r"\.bn\.", ".branches.norm."),
    (
        r"^(stem\.conv2?|.*\.downsample\.(?:depthwise|pointwise))\.(weight|bias)$",
        r"\1.conv.\2",
    ),
)


def renamed(
    state: Mapping[str, Tensor], rules: Rules, places: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return a state dict with each rule applied to each name, in order.

    A name for which a rule finds no place in the network stays what it is.

    Args:
        state: Is not changed.
        rules: Pairs of a pattern and what takes its place.
        places: Modules whose weights the rules are for; None for all.

    Raises:
        CheckpointError: if two names become one.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        new: str | None = name
        if places is None or name.rpartition(".")[0] in places:
            new = _renamed(name, rules)
        if new in found:
            raise CheckpointError(f"Two weights of the checkpoint are {new} here, one is {name}.")
        if new is not None:
            found[new] = value
    return found


def _renamed(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        if replacement is not None:
            try:
                name = re.sub(pattern, replacement, name)
            except LookupError:  # the file has more layers than the network
                return name
        elif re.search(pattern, name):
            return None
    return name


def deployed_where_biased(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return a state in which kernels with a bias have the names of the deployed form.

    In training a BatchNorm follows these convolutions, which then have no bias; the file has one
    name for both.

    Args:
        state: Under the names of the training form.
        rules: From them to those of the deployed form.
    """
    biased = {name.removesuffix(".bias") for name in state if name.endswith(".bias")}
    return renamed(state, rules, biased)


def without_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state in which the biases before BatchNorms have gone into their means."""
    found = dict(state)
    for name in state:
        mean = f"{name.removesuffix('conv.bias')}norm.running_mean"
        is_bias = name.endswith(".conv.bias") and mean in state
        if is_bias and state[mean].shape == state[name].shape:
            found[mean] = state[mean] - found.pop(name)
    return found


def norm_folded(
    state: Mapping[str, Tensor], kernel: str, norm: str, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of a convolution and the BatchNorm after it, in float64.

    Args:
        state: Has both, the convolution with a bias.
        kernel: Name of the convolution.
        norm: Name of the BatchNorm.
        eps: Of the BatchNorm, which no file holds.

    Raises:
        CheckpointError: if a part of them is missing.
    """
    names = [f"{kernel}.{kind}" for kind in ("weight", "bias")]
    names += [f"{norm}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")]
    if missing := [name for name in names if name not in state]:
        raise CheckpointError(f"The checkpoint has a part of a layer, without {missing}.")
    weight, bias, gamma, beta, mean, var = (state[name].double() for name in names)
    scale = gamma / (var + eps).sqrt()
    rows = scale.view(-1, *(1,) * (weight.ndim - 1))
    return rows * weight, scale * (bias - mean) + beta


def unit_norm(path: str, shift: Tensor, eps: float) -> dict[str, Tensor]:
    """Return the state of a BatchNorm that adds a value ``(C,)`` and does nothing else.

    Args:
        path: Of the BatchNorm.
        shift: What it adds.
        eps: Of the BatchNorm.
    """
    ones = torch.ones_like(shift)
    values = {"weight": (ones + eps).sqrt(), "bias": shift, "running_mean": 0 * ones}
    values |= {"running_var": ones, "num_batches_tracked": torch.ones((), dtype=torch.long)}
    return {f"{path}.{name}": value for name, value in values.items()}
