"""A network of listed steps: what the random regions are made of."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Step:
    """One operation: its name or module, the values it reads, and its other arguments."""

    operation: str | int
    inputs: tuple[int, ...]
    arguments: tuple[Any, ...] = ()


class Region(nn.Module):
    """Runs its steps in turn; value 0 is the input, value ``i`` what step ``i - 1`` gives."""

    def __init__(self, parts: Sequence[nn.Module], steps: Sequence[Step], outputs: Sequence[int]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.steps = tuple(steps)
        self.outputs = tuple(outputs)

    def forward(self, x):
        values = [x]
        for step in self.steps:
            operands = [values[index] for index in step.inputs]
            if isinstance(step.operation, int):
                values.append(self.parts[step.operation](*operands))
            else:
                values.append(OPERATIONS[step.operation](*operands, *step.arguments))
        found = tuple(values[index] for index in self.outputs)
        return found if len(found) > 1 else found[0]

    def extra_repr(self) -> str:
        return "\n".join(f"{i + 1}: {step}" for i, step in enumerate(self.steps))


class Scale(nn.Module):
    def __init__(self, channels: int, ndim: int):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(channels, *[1] * ndim))

    def forward(self, x):
        return x * self.gain


class Shift(nn.Module):
    def __init__(self, channels: int, ndim: int):
        super().__init__()
        self.offset = nn.Parameter(torch.randn(1, channels, *[1] * ndim))

    def forward(self, x):
        return self.offset + x


class Product(nn.Module):
    """A product of the last axis and a matrix."""

    def __init__(self, channels: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(channels, channels))

    def forward(self, x):
        return x @ self.matrix


class Standardized(nn.Module):
    """A convolution whose kernel is computed on every call."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv
        self.gain = nn.Parameter(torch.rand(()) + 0.5)

    def forward(self, x):
        weight = self.conv.weight
        weight = (weight - weight.mean()) * self.gain / (weight.square().mean() + 1e-3).sqrt()
        function = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[weight.ndim]
        return function(x, weight, self.conv.bias, self.conv.stride, self.conv.padding)


def shuffle(x, groups):
    n, c = x.shape[0], x.shape[1]
    return x.view(n, groups, c // groups, -1).transpose(1, 2).reshape(x.shape)


def channels_of(x, start, stop, step):
    return x[:, start:stop:step]


def crop(x, lows, highs):
    index = [slice(low, -high if high else None) for low, high in zip(lows, highs, strict=True)]
    return x[(slice(None), slice(None), *index)]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "add in place": operator.iadd,
    "add_": lambda x, y: x.add_(y),
    "stack and sum": lambda *xs: torch.stack(xs).sum(0),
    "stack and mean": lambda *xs: torch.stack(xs, dim=1).mean(1),
    "sum of list": lambda *xs: sum(xs),
    "concatenate": lambda *xs: torch.cat(xs, 1),
    "chunk": lambda x, count, which: x.chunk(count, 1)[which],
    "split": lambda x, sizes, which: torch.split(x, list(sizes), dim=1)[which],
    "channels": channels_of,
    "permute channels": lambda x, order: x[:, list(order)],
    "shuffle": shuffle,
    "crop": crop,
    "pad": functional.pad,
    "pad by value": lambda x, amounts, value: functional.pad(x, amounts, value=value),
    "pad by mode": lambda x, amounts, mode: functional.pad(x, amounts, mode=mode),
    "times": operator.mul,
    "times right": lambda x, factor: factor * x,
    "divide": operator.truediv,
    "plus": operator.add,
    "minus from": lambda x, value: value - x,
    "negate": operator.neg,
    "relu": functional.relu,
    "relu_": lambda x: x.relu_(),
    "square": lambda x: x * x,
    "channels last": lambda x: x.movedim(1, -1),
    "channels first": lambda x: x.movedim(-1, 1),
    "flatten": lambda x: x.flatten(1),
    "spatial mean": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
}
