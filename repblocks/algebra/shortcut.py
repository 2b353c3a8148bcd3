"""The shortcut across several layers as dirac channels (paradigm 6b).

For ``y = last(a(...middle(first(x)))) + a(x)``, with the *same* activation ``a`` on both paths,
the input can travel through the convolutions in channels of its own: every kernel but the last
gives it on beside its output, the activation acts on it too, and the last kernel adds it. Against
an ordinary ``+ x`` this would be wrong. It trades an addition for multiply-adds: a block of a
depthwise k x k kernel and pointwise kernels ``C -> 4C -> C`` goes from ``8C² + k²C`` to
``15C² + 2k²C`` a position.

Source:
    Meng et al., RMNet, 2021, https://arxiv.org/abs/2111.00687
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.kernel import ConvKernel
from repblocks.algebra.parallel import add, concat
from repblocks.algebra.serial import compose
from repblocks.errors import NotFoldable


def expand_shortcut(kernels: Sequence[ConvKernel]) -> list[ConvKernel]:
    """Return kernels that carry their input along and add it at the end.

    Args:
        kernels: Two or more kernels, run one after the other, with any function that acts on each
            value alone in between, as long as that function is applied to the shortcut too.

    Returns:
        As many kernels; a depthwise first one stays grouped, its carried channels stand between
        its own.

    Raises:
        NotFoldable: if there are fewer than two kernels, or one changes the positions or sizes that
            the shortcut keeps.
    """
    if len(kernels) < 2:
        raise NotFoldable(f"A shortcut is expanded across two or more kernels, got {len(kernels)}.")
    channels = kernels[0].in_channels
    if kernels[-1].out_channels != channels:
        raise NotFoldable(
            f"A shortcut adds its {channels} channels to the output, which has "
            f"{kernels[-1].out_channels}."
        )
    first, *middle, last = (kernel.to_affine() for kernel in kernels)
    carry = AffineMap.identity(channels)
    order = _interleaved(first)
    values = [concat(first, carry).reordered(order)]
    for value in middle:
        main, carried = _split(value.in_channels, channels, order)
        values.append(concat(compose(value, main), carried))
        order = torch.arange(values[-1].out_channels)
    main, carried = _split(last.in_channels, channels, order)
    values.append(add(compose(last, main), carried))
    return [ConvKernel.from_affine(value) for value in values]


def carried_channels(first: ConvKernel) -> Tensor:
    """Return which outputs of the expanded first kernel carry its input.

    Args:
        first: As given to :func:`expand_shortcut`.

    Returns:
        Places among the outputs, ``(C_in,)``, in the order of the input channels.
    """
    return _interleaved(first.to_affine()).argsort()[first.out_channels :]


def _interleaved(first: AffineMap) -> Tensor:
    """Order the outputs of ``first`` and the carried channels so that groups stay contiguous."""
    groups = first.groups
    own = torch.arange(first.out_channels).view(groups, -1)
    carried = first.out_channels + torch.arange(first.in_channels).view(groups, -1)
    return torch.cat([own, carried], dim=1).flatten()


def _split(main: int, carried: int, order: Tensor) -> tuple[AffineMap, AffineMap]:
    """Return the selections of the main and of the carried channels out of reordered ones."""
    place = order.argsort().unsqueeze(1)
    total = main + carried
    return AffineMap(total, place[:main]), AffineMap(total, place[main:])
