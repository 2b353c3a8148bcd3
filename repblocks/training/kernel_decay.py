"""Weight decay of what is deployed: the equivalent kernel of each block.

Ordinary decay acts on the weights of each branch, which the BatchNorm after them scales back. What
is deployed is another kernel, and this decay acts on it: ``1/2 sum(K ** 2)`` over the kernels
``K`` that the blocks have in evaluation mode, with all their branches, the identity among them. It
is differentiable, also in the scales of BatchNorm; its statistics are the running ones.

RepVGG's own form, for its block alone, is ``1/2 sum(K ** 2 / sum(s ** 2))``, where ``s`` are the
scales of the BatchNorms whose branches reach a tap, as constants: 3 x 3 alone outside of the
centre, where what remains is the weight of the branch itself. It leaves the identity out of ``K``,
and so decays another kernel than that which is deployed; QARepVGG includes it. The authors found
that its effect vanished in later experiments.

Source:
    Ding et al., RepVGG, CVPR 2021, https://arxiv.org/abs/2101.03697, and its official code,
    https://github.com/DingXiaoH/RepVGG, ``get_custom_L2``
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from repblocks.blocks import Affine, ConvBlock, RepBlock
from repblocks.errors import ConfigurationError
from repblocks.expansion.modes import evaluating


def kernel_penalty(model: nn.Module) -> Tensor:
    """Give half the sum of the squares of all equivalent kernels, without their biases.

    These are the kernels of conv blocks and of the affine parts of stage blocks: with the shortcut,
    LayerScale or norm that folds into them. Heads and plain layers are not among them.

    Args:
        model: A network with blocks, in any mode.

    Raises:
        ConfigurationError: if it has none.
        NotFoldable: if a block has no equivalent kernel in evaluation mode either.
    """
    blocks = [block for _, block in _outermost(model)]
    if not blocks:
        raise ConfigurationError(
            "kernel_decay needs blocks that fold, and the network has none. Choose a block=..., or "
            "optimizer.weight_decay alone."
        )
    device = next(model.parameters()).device.type
    with evaluating(model), torch.autocast(device, enabled=False):
        penalties = [block.equivalent_kernel().weight.square().sum() for block in blocks]
    return torch.stack(penalties).sum() / 2


def penalised_names(model: nn.Module) -> set[str]:
    """Give the names of the parameters that the kernels of all blocks are made of.

    Raises:
        ConfigurationError: if a block is annealed, and so has no such kernel during training.
    """
    annealed = {
        type(module).__name__
        for module in model.modules()
        if isinstance(module, RepBlock) and type(module).anneal is not RepBlock.anneal
    }
    if annealed:
        raise ConfigurationError(
            "kernel_decay needs the equivalent kernel of each block in each update, and "
            f"{', '.join(sorted(annealed))} has one at the end of its annealing only. Set "
            "kernel_decay=0 and optimizer.weight_decay."
        )
    return {
        f"{path}.{name}".lstrip(".")
        for path, block in _outermost(model)
        for name, _ in block.named_parameters()
        if not name.startswith("tail.")
    }


def _outermost(model: nn.Module, path: str = "") -> Iterator[tuple[str, ConvBlock | Affine]]:
    """Find what becomes one convolution each."""
    if isinstance(model, ConvBlock | Affine):
        yield path, model
        return
    for name, child in model.named_children():
        yield from _outermost(child, f"{path}.{name}".lstrip("."))
