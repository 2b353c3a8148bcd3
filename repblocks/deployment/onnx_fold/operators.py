"""The ONNX operators that a fold may look into: one table, from a node to a torch module.

What is not in the table, or raises ``NotFoldable`` here, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from repblocks.errors import NotFoldable


@dataclass(frozen=True, eq=False)
class Node:
    """A node, and what is known of what it reads.

    Args:
        proto: The node.
        options: Its attributes by name.
        constants: The constant at each input; None where there is an activation or nothing.
        inputs: The example's value at each input; None where there is a constant or nothing.
        opset: The version of the standard operators.
        shape: Of its output as far as it is the same for all inputs: a size, or the name of one.
        reads: The same of its first input.
        axes: By their names, the free sizes of the first input of the graph.
    """

    proto: onnx.NodeProto
    options: Mapping[str, Any]
    constants: Sequence[np.ndarray | None]
    inputs: Sequence[Tensor | None]
    opset: int
    shape: Sequence[int | str] | None = None
    reads: Sequence[int | str] | None = None
    axes: Mapping[str, int] = field(default_factory=dict)

    def constant(self, place: int) -> np.ndarray | None:
        """Return the constant at an input; None if the input is left out.

        Raises:
            NotFoldable: if it is an activation.
        """
        if place < len(self.inputs) and self.inputs[place] is not None:
            raise NotFoldable(f"Its input {place} depends on an activation.")
        return self.constants[place] if place < len(self.constants) else None

    def tensor(self, place: int) -> Tensor:
        """Return the constant at an input, for a layer to own.

        Raises:
            NotFoldable: if it is an activation or left out.
        """
        found = self.constant(place)
        if found is None:
            raise NotFoldable(f"Its input {place} is left out.")
        return torch.from_numpy(np.array(found))

    def integers(self, name: str, place: int, since: int) -> list[int] | None:
        """Return integers that are an attribute, or an input since a version; None if left out."""
        found = self.options.get(name) if self.opset < since else self.constant(place)
        return None if found is None else [int(one) for one in np.ravel(found)]

    @property
    def activation(self) -> Tensor:
        """The example's value at the first input.

        Raises:
            NotFoldable: if that is a constant.
        """
        found = self.inputs[0] if self.inputs else None
        if found is None:
            raise NotFoldable("Its first input is a constant.")
        return found

    def spatial(self, *, at_least: int = 1) -> int:
        """Return the number of axes after the channels.

        Raises:
            NotFoldable: if there is no layer of torch for so many.
        """
        found = self.activation.ndim - 2
        if not at_least <= found <= 3:
            raise NotFoldable(f"It reads {self.activation.ndim} axes.")
        return found


Translator = Callable[[Node], nn.Module]
TRANSLATORS: dict[str, Translator] = {}


def translates(*op_types: str) -> Callable[[Translator], Translator]:
    """Register what these operators become."""

    def register(function: Translator) -> Translator:
        TRANSLATORS.update(dict.fromkeys(op_types, function))
        return function

    return register


def module_of(node: Node) -> nn.Module:
    """Return the module that a node becomes.

    Raises:
        NotFoldable: if it stays as it is, with the reason.
    """
    found = TRANSLATORS.get(node.proto.op_type)
    if found is None:
        raise NotFoldable("It is no linear operator.")
    return found(node).eval()
