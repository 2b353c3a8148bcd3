"""Branches that act on patches of a fixed size, whose values stand one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repblocks.algebra.affine import AffineMap
from repblocks.algebra.patches import on_patches
from repblocks.algebra.rules import apply, rule
from repblocks.algebra.serial import compose


class OnPatches(nn.Module):
    """A branch of C channels that sees each row of values as a patch.

    Args:
        branch: Maps patches ``(N, C, *size)``.
        channels: C.
        size: The positions on each axis, P in all.
    """

    def __init__(self, branch: nn.Module, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        self.branch, self.channels, self.size = branch, channels, tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map values ``(N, C * P, 1)`` to values of the same order."""
        patches = x.reshape(-1, self.channels, *self.size)
        return self.branch(patches).flatten(1).unsqueeze(2)

    def extra_repr(self) -> str:
        """Show the size."""
        return f"channels={self.channels}, size={self.size}"


@rule(OnPatches)
def _on_patches(module: OnPatches, value: AffineMap, like: Tensor | None) -> AffineMap:
    own = apply(module.branch, AffineMap.identity(module.channels), like)
    return compose(on_patches(own, module.size, like), value)
