"""Train with many branches, deploy one convolution, and know that they are the same function.

Importing the package loads nothing: the names below load where they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repblocks.algebra import ConvKernel as ConvKernel
    from repblocks.blocks import RepBlock as RepBlock
    from repblocks.blocks import create_block as create_block
    from repblocks.blocks import set_execution as set_execution
    from repblocks.deployment.load import load as load
    from repblocks.expansion import expand as expand
    from repblocks.expansion import insert_bn as insert_bn
    from repblocks.expansion import recalibrate_bn as recalibrate_bn
    from repblocks.expansion import swap as swap
    from repblocks.folding.fold import explain as explain
    from repblocks.folding.fold import fold as fold
    from repblocks.folding.switch import fold_blocks as fold_blocks
    from repblocks.folding.verification import verify as verify
    from repblocks.models.official import load_official as load_official

_HOMES = {
    "ConvKernel": "repblocks.algebra",
    "RepBlock": "repblocks.blocks",
    "create_block": "repblocks.blocks",
    "expand": "repblocks.expansion",
    "explain": "repblocks.folding.fold",
    "fold": "repblocks.folding.fold",
    "fold_blocks": "repblocks.folding.switch",
    "insert_bn": "repblocks.expansion",
    "load": "repblocks.deployment.load",
    "load_official": "repblocks.models.official",
    "recalibrate_bn": "repblocks.expansion",
    "set_execution": "repblocks.blocks",
    "swap": "repblocks.expansion",
    "verify": "repblocks.folding.verification",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605 # made from the table, which is checked by a test


def __getattr__(name: str) -> object:
    """Load a public name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'repblocks' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
