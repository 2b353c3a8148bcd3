"""Rules that turn foreign names of weights into ours, those that several networks share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

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


def renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return a state dict with each rule applied to each name, in order.

    Args:
        state: Is not changed.
        rules: Pairs of a pattern and what takes its place.

    Raises:
        CheckpointError: if two names become one.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        new = _renamed(name, rules)
        if new in found:
            raise CheckpointError(f"Two weights of the checkpoint are {new} here, one is {name}.")
        if new is not None:
            found[new] = value
    return found


def _renamed(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        if replacement is not None:
            name = re.sub(pattern, replacement, name)
        elif re.search(pattern, name):
            return None
    return name
