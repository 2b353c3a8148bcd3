"""RepOptimizer: re-parameterize the gradient instead of the network.

Branches with constant factors and one BatchNorm after their sum (CSLA: constant-scale linear
addition) train exactly as the one kernel that they add up to, if that starts from their sum and its
gradient is multiplied by what the factors say. So a plain network trains with the prior of RepVGG,
without its branches, their memory, and the statistics that make folded kernels hard to quantize.

With the factors ``s`` of k x k and ``t`` of 1 x 1 (for each output channel), and the identity a
trained factor ``u`` for each channel, the kernel starts as ``s W + pad(t V) + diag(u)``. One
update of SGD moves it by the gradient times ``s ** 2``, plus ``t ** 2`` at its centre, plus 1 on
the diagonal of the centre. Adam divides by the size of the gradient, so that the update, not the
gradient, is multiplied, by ``|s|``, ``|t|`` and 1. The decay of the branches adds up to that of the
kernel in both: it is not multiplied.

Source:
    Ding et al., Re-parameterizing Your Optimizers rather than Architectures, ICLR 2023, section 3
    and appendix A, https://arxiv.org/abs/2205.15242
    Official code: https://github.com/DingXiaoH/RepOptimizers

The equality holds for SGD with momentum exactly, for AdamW but for its ``eps``. Clipping breaks it:
what is clipped would be the size of another gradient.

Differences: any odd kernel size, dilation and groups; 1-d and 3-d; factors below 0 with AdamW; the
multipliers are part of the optimizer's state, so that a resumed run has those it started with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.blocks import CONV_BLOCKS, ConvBlock
from repblocks.errors import ConfigurationError
from repblocks.training.checkpoint import read_checkpoint
from repblocks.training.config import RepOptimizerConfig

Groups = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Constants:
    """The factors of the branches that a kernel stands for.

    Attributes:
        kernel: Of k x k, ``(C_out,)``.
        pointwise: Of 1 x 1, ``(C_out,)``.
        identity: The first value of the identity's factors, ``(C_out,)``; None without identity.
    """

    kernel: Tensor
    pointwise: Tensor
    identity: Tensor | None


def constants_of(model: nn.Module, config: RepOptimizerConfig) -> dict[str, Constants]:
    """Give the factors for each plain block of a network, by the path of the block.

    Args:
        model: A network of plain blocks; those of one tap stay as they are.
        config: Says what the factors are, or where they were searched.

    Raises:
        ConfigurationError: if there is no block to train so, or the search was another network's.
        CheckpointError: if the checkpoint of the search cannot be read.
    """
    blocks = dict(_plain_blocks(model))
    if not blocks:
        raise ConfigurationError(
            f"{config.name} trains plain blocks of odd kernel size 3 or more as if they had "
            "branches, and the network has none. Choose block=plain."
        )
    if config.scales_from is None:
        return {path: _given(block, config) for path, block in blocks.items()}
    searched = read_checkpoint(config.scales_from).state_dict
    return {path: _searched(path, block, searched, config) for path, block in blocks.items()}


def _plain_blocks(model: nn.Module) -> Iterator[tuple[str, ConvBlock]]:
    for path, block in model.named_modules():
        if isinstance(block, CONV_BLOCKS["plain"]) and isinstance(block, ConvBlock):
            sizes = block.shape.kernel_size
            if not block.is_deployed and max(sizes) > 1 and all(size % 2 for size in sizes):
                yield path, block


def _given(block: ConvBlock, config: RepOptimizerConfig) -> Constants:
    def full(value: float) -> Tensor:
        return torch.full((block.shape.out_channels,), float(value))

    return Constants(
        full(config.kernel_scale),
        full(config.pointwise_scale),
        full(config.identity_scale) if block.shape.allows_identity else None,
    )


def _searched(
    path: str, block: ConvBlock, searched: Mapping[str, Tensor], config: RepOptimizerConfig
) -> Constants:
    names = ["kxk", "pointwise", *["identity"] * block.shape.allows_identity]
    keys = {name: f"{path}.branches.sum.{name}.scale.weight".lstrip(".") for name in names}
    found = {name: searched[key] for name, key in keys.items() if key in searched}
    size = (block.shape.out_channels,)
    if len(found) < len(names) or any(scale.shape != size for scale in found.values()):
        raise ConfigurationError(
            f"optimizer.scales_from={config.scales_from} has no factors of {size[0]} channels for "
            f"the branches {', '.join(names)} of the block {path!r}. It must be a checkpoint of "
            "this network, trained with block=repvgg and a block.scale."
        )
    return Constants(found["kxk"], found["pointwise"], found.get("identity"))


def _conv(block: ConvBlock) -> nn.Module:
    return next(m for m in block.modules() if isinstance(m, nn.modules.conv._ConvNd))


def _centre(weight: Tensor) -> Tensor:
    """Give a view ``(C_out, C_in / groups)`` of the centre of a kernel."""
    for size in weight.shape[2:]:
        weight = weight.select(2, size // 2)
    return weight


def _diagonal(weight: Tensor, groups: int) -> Tensor:
    """Give the kernel of the identity, in the shape of another one."""
    return nn.init.dirac_(torch.zeros_like(weight), groups)


@torch.no_grad()
def start_from_branches(model: nn.Module, constants: Mapping[str, Constants]) -> None:
    """Make the kernels of new plain blocks the sums of branches: random ones, and the identity.

    Args:
        model: A network with new weights, changed in place.
        constants: As of ``constants_of``.
    """
    for path, own in constants.items():
        block = model.get_submodule(path)
        conv: Any = _conv(block)  # type: ignore[arg-type] # a block
        weight: Tensor = conv.weight
        pointwise = nn.init.kaiming_uniform_(_centre(weight).clone(), a=5**0.5)
        weight.mul_(_per_output(own.kernel, weight))
        _centre(weight).add_(pointwise * _per_output(own.pointwise, pointwise))
        if own.identity is not None:
            weight.add_(_diagonal(weight, conv.groups) * _per_output(own.identity, weight))


def _per_output(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.to(weight).view(-1, *(1,) * (weight.ndim - 1))


@torch.no_grad()
def multipliers(
    model: nn.Module, constants: Mapping[str, Constants], power: int
) -> dict[nn.Parameter, Tensor]:
    """Give what the gradient of each kernel is multiplied by, in its shape.

    Args:
        model: The network.
        constants: As of ``constants_of``.
        power: 2 for SGD, 1 for AdamW, whose updates are multiplied.
    """
    found = {}
    for path, own in constants.items():
        conv: Any = _conv(model.get_submodule(path))  # type: ignore[arg-type] # a block
        weight = conv.weight
        factor = torch.ones_like(weight) * _per_output(own.kernel.abs() ** power, weight)
        centre = _centre(factor)
        centre.add_(_per_output(own.pointwise.abs() ** power, centre))
        if own.identity is not None:
            factor.add_(_diagonal(weight, conv.groups))
        found[weight] = factor
    return found


def _with_multipliers(groups: Iterable[Mapping[str, Any]], known: Mapping[Any, Tensor]) -> Groups:
    """Put the multipliers beside the parameters, where an optimizer saves and restores them."""
    return [{**group, "multipliers": [known.get(p) for p in group["params"]]} for group in groups]


def _multiplied(optimizer: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, Tensor, Any]]:
    """Give each parameter that has a gradient and a multiplier, with both and its group."""
    for group in optimizer.param_groups:
        pairs = zip(group["params"], group["multipliers"], strict=True)
        # A restored state may lie on another device.
        group["multipliers"] = [None if m is None else m.to(p) for p, m in pairs]
        for parameter, factor in zip(group["params"], group["multipliers"], strict=True):
            if factor is not None and parameter.grad is not None:
                yield parameter, factor, group


class RepSGD(torch.optim.SGD):
    """SGD whose gradients are multiplied before momentum and decay.

    Args:
        groups: Groups of parameters.
        known: What to multiply by, as of ``multipliers`` with ``power=2``.
        options: Of torch's SGD.
    """

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], known: Mapping[Any, Tensor], **options: Any
    ) -> None:
        super().__init__(_with_multipliers(groups, known), **options)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; the closure computes the loss and the gradients."""
        loss = _evaluated(closure)
        with torch.no_grad():
            for parameter, factor, _ in _multiplied(self):
                parameter.grad.mul_(factor)  # type: ignore[union-attr] # there is one
        super().step()
        return loss


class RepAdamW(torch.optim.AdamW):
    """AdamW whose updates are multiplied; its decay is not.

    Args:
        groups: Groups of parameters.
        known: What to multiply by, as of ``multipliers`` with ``power=1``.
        options: Of torch's AdamW.
    """

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], known: Mapping[Any, Tensor], **options: Any
    ) -> None:
        super().__init__(_with_multipliers(groups, known), **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; the closure computes the loss and the gradients."""
        loss = _evaluated(closure)
        multiplied = [(p, factor, group, p.clone()) for p, factor, group in _multiplied(self)]
        for parameter, *_ in multiplied:
            parameter.zero_()  # what AdamW then leaves there is its update, without decay
        super().step()
        for parameter, factor, group, before in multiplied:
            kept = 1 - group["lr"] * group["weight_decay"]
            parameter.mul_(factor).add_(before, alpha=kept)
        return loss


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def build_rep_optimizer(
    model: nn.Module, groups: Groups, config: RepOptimizerConfig, lr: float
) -> torch.optim.Optimizer:
    """Build the optimizer of a network of plain blocks.

    Args:
        model: The network.
        groups: Its parameters, with and without decay.
        config: What to build.
        lr: The learning rate.

    Raises:
        ConfigurationError: as ``constants_of``.
        TypeError: if there is no such option.
    """
    constants = constants_of(model, config)
    if config.name == "rep_adamw":
        return RepAdamW(groups, multipliers(model, constants, 1), lr=lr, **config.options)
    options = {"nesterov": True, **config.options}
    return RepSGD(
        groups, multipliers(model, constants, 2), lr=lr, momentum=config.momentum, **options
    )
