"""What a network says about its published weights, and its training form for them."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from repblocks.blocks import RepBlock
from repblocks.models._rules import Rules


class Published(nn.Module):
    """A network that published weights can be loaded into; ``deploy`` is one of its arguments."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, to build the training form of a deployed network."""
        network = super().__new__(cls)
        network._arguments = (args, kwargs)
        return network

    @property
    def is_deployed(self) -> bool:
        """Whether blocks are in their deployed form."""
        return any(isinstance(m, RepBlock) and m.is_deployed for m in self.modules())

    def official_rules(self) -> Rules:
        """Return what the names of published weights are called here."""
        return ()

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return renamed weights as they are to be here, where a name alone does not tell."""
        return state

    def in_training_form(self, **changed: Any) -> Self:
        """Return a new network of the same arguments, but for some, in its training form."""
        args, kwargs = self._arguments
        like = next(self.parameters())
        return type(self)(*args, **{**kwargs, **changed, "deploy": False}).to(like)
