"""RM residual: two convolutions and a shortcut, deployed without the shortcut.

The first convolution gives its input on in channels of its own (reserve), and the second adds them
(merge). What stands in between must let them through: of a rectifier and its like a PReLU is made,
whose slope is 1 for these channels, so that both forms are one function for every input. With
``shortcut="activated"`` the shortcut is the activated input, any activation will do, and it is the
same before and after; where the input is never below zero and the activation is a rectifier, that
is the ordinary residual block.

Cost: k x k kernels with C channels outside and H inside go from ``2 k² C H`` to ``2 k² C (H + C)``
multiply-adds a position, twice as many for H = C. It is for hardware and for pruning that want no
addition; ``deploy_shortcut="add"`` keeps the addition and costs nothing.

Source:
    Meng et al., RMNet: Equivalently Removing Residual Connection from Networks, 2021, section 3,
    https://arxiv.org/abs/2111.00687
    Official code: https://github.com/fxmeng/RMNet

Differences: what passes the carried channels is checked, where the official code replaces ReLU6,
too, for which the two forms differ; the block has a stride of 1 and as many channels before as
after; the convolutions are any conv block; groups, 1-d and 3-d. The carried channels have no
BatchNorm when deployed. Where the activation was a PReLU whose slope is trained, the slopes of the
deployed one go on training, one for each channel then, those of the carried channels too, as the
kernels that carry them do; those of relu and leakyrelu stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from repblocks.algebra.kernel import ConvKernel
from repblocks.algebra.rules import check_call
from repblocks.algebra.shortcut import carried_channels, expand_shortcut
from repblocks.blocks._base import deployed_conv
from repblocks.blocks._registry import create_block, register_stage_block
from repblocks.blocks._stage import Affine, StageBlock, hidden_channels
from repblocks.blocks._tail import ACTIVATIONS, create_activation
from repblocks.branches import Size, check_choice, check_count
from repblocks.errors import ConfigurationError, NotFoldable

SHORTCUTS = ("input", "activated")
FORMS = ("expand", "add")
#: Activations that are a PReLU of some slope, for the shortcut that is the input itself.
PASSING = ("relu", "leakyrelu", "prelu")


@final
@register_stage_block("rm_residual")
class RMResidualBlock(StageBlock):
    """Convolution, activation and convolution, added to the input; no addition when deployed.

    Args:
        dim: C.
        kernel_size: Odd numbers of taps of both convolutions.
        mlp_ratio: H, the channels in between, as a multiple of C.
        groups: Of both convolutions.
        shortcut: ``"input"`` adds the input, ``"activated"`` the activation of it.
        deploy_shortcut: ``"expand"`` carries the shortcut in channels of its own, ``"add"`` keeps
            the addition; it may be set until the block is switched.
        activation: In between, a torch activation in lower case; to expand a shortcut that is the
            input itself it must be relu, leakyrelu or prelu.
        last_activation: After the addition; None for none.
        block: A conv block for both convolutions, by name.
        block_options: Options of that conv block.
        ndim: 1, 2 or 3 spatial axes.
        execution: How the convolutions compute their branches in training.

    Raises:
        ConfigurationError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: Size = 3,
        mlp_ratio: float = 1.0,
        groups: int = 1,
        shortcut: str = "input",
        deploy_shortcut: str = "expand",
        activation: str = "relu",
        last_activation: str | None = "relu",
        block: str = "plain",
        block_options: Mapping[str, Any] | None = None,
        ndim: int = 2,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_choice("shortcut", shortcut, SHORTCUTS)
        check_choice("deploy_shortcut", deploy_shortcut, FORMS)
        if (shortcut, deploy_shortcut) == ("input", "expand") and activation not in PASSING:
            raise ConfigurationError(
                f"activation must be one of {', '.join(PASSING)} for the input to be carried "
                f"through it, got {activation!r}; choose one of them, shortcut='activated', or "
                "deploy_shortcut='add'."
            )
        self.shortcut = shortcut
        self.deploy_shortcut = deploy_shortcut
        self.carried: nn.Module | None = nn.Identity()
        hidden = hidden_channels(dim, mlp_ratio)

        def affine(in_channels: int, out_channels: int) -> Affine:
            conv = create_block(
                block,
                in_channels,
                out_channels,
                kernel_size,
                groups=groups,
                ndim=ndim,
                activation=None,
                se=None,
                execution=execution,
                **(block_options or {}),
            )
            return Affine(in_channels, ndim, conv=conv)

        self.conv1: nn.Module = affine(dim, hidden)
        self.act = create_activation(activation)
        self.conv2: nn.Module = affine(hidden, dim)
        self.last = create_activation(last_activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *spatial)`` to ``(N, C, *spatial)``."""
        y: Tensor = self.conv2(self.act(self.conv1(x)))
        if self.carried is not None:
            y = y + self.carried(x if self.shortcut == "input" else self.act(x))
        return self.last(y)

    def _fold(self) -> Mapping[str, nn.Module | None]:
        check_choice("deploy_shortcut", self.deploy_shortcut, FORMS)
        if self.deploy_shortcut == "add":
            return super()._fold()
        parts = dict(self.affine_parts())
        kernels = [part.equivalent_kernel(torch.float64) for part in parts.values()]
        act = self._passing(kernels[0])
        expanded = zip(expand_shortcut(kernels), parts.items(), strict=True)
        convs = {name: deployed_conv(kernel, part) for kernel, (name, part) in expanded}
        return {**convs, "act": act, "carried": None}

    def _passing(self, first: ConvKernel) -> nn.Module:
        """Return an activation that does what it did, and lets the carried channels through."""
        check_call(self.act)
        if self.carried is not None:
            check_call(self.carried)
        if self.shortcut == "activated":
            _check_alike(self.act)
            return self.act
        slopes = _slopes(self.act, first.out_channels)
        channels = first.out_channels + first.in_channels
        carried = carried_channels(first).to(slopes.device)
        is_own = torch.ones(channels, dtype=torch.bool, device=slopes.device)
        is_own[carried] = False
        weight = slopes.new_ones(channels)
        weight[is_own] = slopes
        like = next(self.conv1.parameters())
        act = nn.PReLU(channels, device=like.device, dtype=like.dtype)
        act.weight.copy_(weight)
        is_trained = isinstance(self.act, nn.PReLU) and self.act.weight.requires_grad
        return act.requires_grad_(is_trained)


def _slopes(act: nn.Module, channels: int) -> Tensor:
    """Return the slopes below zero of an activation that is a PReLU, ``(channels,)``."""
    if type(act) is nn.ReLU:
        return torch.zeros(channels, dtype=torch.float64)
    if type(act) is nn.LeakyReLU:
        return torch.full((channels,), act.negative_slope, dtype=torch.float64)
    if type(act) is nn.PReLU:
        return act.weight.detach().expand(channels)
    raise NotFoldable(
        f"The activation must be one of {', '.join(PASSING)} for the input to be carried through "
        f'it, got {act}; set deploy_shortcut="add", which keeps the addition.'
    )


def _check_alike(act: nn.Module) -> None:
    known = type(act) in (nn.Identity, *ACTIVATIONS.values())
    if not known or (isinstance(act, nn.PReLU) and act.num_parameters > 1):
        raise NotFoldable(
            "The shortcut is expanded across an activation that does the same to every value, got "
            f'{act}; set deploy_shortcut="add", which keeps the addition.'
        )
