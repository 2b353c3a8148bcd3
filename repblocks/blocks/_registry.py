"""Blocks by name: one registry of conv blocks, one of stage blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from repblocks.errors import ConfigurationError, UnknownNameError

Class = TypeVar("Class", bound=type[nn.Module])


class Registry(Mapping[str, type[nn.Module]]):
    """Classes by name, in the order of their names.

    Args:
        kind: What the classes are, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[nn.Module]] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Register a class under a name that is not taken.

        Raises:
            ConfigurationError: if another class has the name.
        """

        def add(cls: Class) -> Class:
            taken = self._classes.setdefault(name, cls)
            if taken is not cls:
                raise ConfigurationError(
                    f"The {self.kind} name {name!r} belongs to {taken.__qualname__} already."
                )
            return cls

        return add

    def __getitem__(self, name: str) -> type[nn.Module]:
        """Return the class of a name.

        Raises:
            UnknownNameError: if there is none; it lists those that there are.
        """
        if name not in self._classes:
            raise UnknownNameError(self.kind, name, self._classes)
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes


CONV_BLOCKS = Registry("conv block")
STAGE_BLOCKS = Registry("stage block")

register_block = CONV_BLOCKS.register
register_stage_block = STAGE_BLOCKS.register


def create_block(name: str, *args: Any, **options: Any) -> nn.Module:
    """Return a new conv block by name; the arguments are those of its class.

    Raises:
        ConfigurationError: if the name is that of a stage block.
        UnknownNameError: if no conv block has the name, or the block does not have an option.
    """
    if name in STAGE_BLOCKS and name not in CONV_BLOCKS:
        raise ConfigurationError(
            f"{name!r} is a stage block, which does not take the place of one convolution; build "
            f"it as STAGE_BLOCKS[{name!r}](...), or use the network of that name. Conv blocks: "
            f"{', '.join(CONV_BLOCKS)}."
        )
    return CONV_BLOCKS[name](*args, **options)


def check_options(cls: type[nn.Module], options: dict[str, Any]) -> None:
    """Check that a block takes the options.

    Raises:
        UnknownNameError: for the first one that it does not take, with those that it takes.
    """
    known = inspect.signature(cls).parameters
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {cls.__name__}", name, known)
