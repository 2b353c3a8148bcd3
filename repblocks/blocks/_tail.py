"""What follows the sum of the branches in both forms: squeeze-and-excitation, activation."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations

from repblocks.algebra.special import CONV_CLASSES
from repblocks.errors import ConfigurationError, UnknownNameError

# They mix channels, which the expanded shortcut must not, are random, or need arguments.
_OTHERS = {"Softmax", "Softmax2d", "Softmin", "LogSoftmax", "GLU"}
_OTHERS |= {"MultiheadAttention", "Threshold", "RReLU"}

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name.lower(): getattr(torch_activations, name)
    for name in torch_activations.__all__
    if name not in _OTHERS
}


def create_activation(name: str | None) -> nn.Module:
    """Return a new activation module; None gives the identity.

    Args:
        name: A class of ``torch.nn`` in lower case, ``"relu"`` or ``"gelu"`` for example.

    Raises:
        ConfigurationError: if it is no name.
        UnknownNameError: if torch has no such activation that acts on each value alone.
    """
    if name is None:
        return nn.Identity()
    if not isinstance(name, str):
        raise ConfigurationError(
            f"activation must be the name of a torch activation in lower case, or None, got {name}."
        )
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of all, in 1, 2 or 3 dimensions.

    Args:
        channels: C.
        ratio: Hidden channels as a fraction of C, or, if a whole number above 1, their number.
        ndim: Number of spatial axes.
        gate: The activation that makes the gates.

    Raises:
        ConfigurationError: if the ratio is no fraction or leaves no hidden channel.

    Source:
        Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507
    """

    def __init__(self, channels: int, ratio: float, ndim: int, gate: str = "sigmoid") -> None:
        super().__init__()
        is_number = type(ratio) is int and ratio > 1
        if not is_number and (not isinstance(ratio, int | float) or not 0 < ratio <= 1):
            raise ConfigurationError(
                f"se must be a fraction of the channels above 0 and at most 1, got {ratio!r}; a "
                "whole number above 1 is the number of hidden channels."
            )
        hidden = int(ratio) if is_number else int(channels * ratio)
        if hidden < 1:
            raise ConfigurationError(
                f"se must leave a hidden channel: {ratio} of {channels} channels is less than one."
            )
        self.axes = tuple(range(2, 2 + ndim))
        self.reduce = CONV_CLASSES[ndim](channels, hidden, 1)
        self.act = nn.ReLU()
        self.expand = CONV_CLASSES[ndim](hidden, channels, 1)
        self.gate = create_activation(gate)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of ``(N, C, *spatial)``."""
        return x * self.gates(x)

    def gates(self, x: Tensor) -> Tensor:
        """Return the factors, ``(N, C, 1, ...)``."""
        gate: Tensor = self.expand(self.act(self.reduce(x.mean(self.axes, keepdim=True))))
        return self.gate(gate)


def create_tail(
    channels: int, activation: str | None, se: float | None, ndim: int, se_is_last: bool = False
) -> nn.Sequential:
    """Return squeeze-and-excitation, if there is a ratio, and then the activation.

    Args:
        channels: C.
        activation: A torch activation in lower case, or None.
        se: Hidden channels as a fraction of C, or None.
        ndim: Number of spatial axes.
        se_is_last: Whether the activation comes first.
    """
    parts: dict[str, nn.Module] = {}
    if se is not None:
        parts["se"] = SqueezeExcite(channels, se, ndim)
    if activation is not None:
        parts["act"] = create_activation(activation)
    return nn.Sequential(OrderedDict(reversed(parts.items()) if se_is_last else parts))
