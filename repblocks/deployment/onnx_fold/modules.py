"""The small modules that ONNX nodes become, where torch has none; each is one operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

#: The attribute of a module that is the place of its node in the file.
NODE = "onnx_node"
#: The same of a module that is a part of a node: padding before it, or the sum of some terms.
PART = "onnx_part"


class Call(nn.Module):
    """Calls a function on any number of activations."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """Return what the function gives."""
        return self.function(*inputs)


class Unary(nn.Module):
    """Calls a function on one activation ``(N, C, ...)``."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Any:
        """Return what the function gives."""
        return self.function(x, **self.options)


class Binary(nn.Module):
    """Calls a function on two activations."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, first: Tensor, second: Tensor) -> Any:
        """Return what the function gives."""
        return self.function(first, second)


class WithConstant(nn.Module):
    """Calls a function on an activation and a constant, in this order or the other."""

    def __init__(
        self, function: Callable[..., Any], constant: Tensor, *, is_first: bool = False
    ) -> None:
        super().__init__()
        self.function, self.is_first = function, is_first
        self.constant = nn.Parameter(constant, constant.is_floating_point())

    def forward(self, x: Tensor) -> Any:
        """Return what the function gives."""
        return self.function(self.constant, x) if self.is_first else self.function(x, self.constant)


class Concat(nn.Module):
    """Concatenates activations along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return ``(N, C_1 + C_2 + ..., ...)``."""
        return torch.cat(inputs, self.axis)


class Slice(nn.Module):
    """Takes slices along all axes."""

    def __init__(self, items: Sequence[slice]) -> None:
        super().__init__()
        self.items = tuple(items)

    def forward(self, x: Tensor) -> Tensor:
        """Return the part."""
        return x[self.items]


class Reshape(nn.Module):
    """Reshapes an activation.

    The shape that the graph computes, if it does, is given as well, as the node of the graph reads
    it; and last an input of the graph, if sizes of that are among the new ones. Those of what is
    reshaped would have a layer before it computed just for its shape.

    Args:
        sizes: The new sizes; one may be -1.
        copied: By place of a new size, the axis of that input whose size it is.
    """

    def __init__(self, sizes: Sequence[int], copied: Mapping[int, int]) -> None:
        super().__init__()
        self.sizes, self.copied = tuple(sizes), dict(copied)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Return the same values in another shape."""
        sizes = [
            others[-1].shape[self.copied[place]] if place in self.copied else size
            for place, size in enumerate(self.sizes)
        ]
        return x.reshape(sizes)


class SameType(nn.Module):
    """Gives an activation back, which has the type of the other one already."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the same."""
        del other
        return x


class ShapeOf(nn.Module):
    """Gives the sizes of an activation as numbers: it reads no values, so that they may go."""

    def __init__(self, start: int, end: int | None) -> None:
        super().__init__()
        self.place = slice(start, end)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(number of axes,)``."""
        return numbers(x.shape[self.place])


def numbers(sizes: Any) -> Tensor:
    """Return sizes as a tensor; torch.fx writes it down as a call of a function."""
    if has_torch_function((sizes,)):
        found: Tensor = handle_torch_function(numbers, (sizes,), sizes)
        return found
    return torch.tensor(sizes, dtype=torch.int64)


class Unsqueeze(nn.Module):
    """Adds axes of size one, given in the order of the result."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same values with more axes."""
        for axis in self.axes:
            x = x.unsqueeze(axis)
        return x
