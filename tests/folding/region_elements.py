"""The single elements of random linear regions, and the builder that they are added to."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from region_module import OPERATIONS, Product, Region, Scale, Shift, Standardized, Step
from torch import Tensor, nn

Integer = Callable[[int, int], int]  # from low to high, both included

MAX_VALUES = 4000
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
ZERO_PADS = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
MODES = ["reflect", "replicate", "circular"]
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


class Builder:
    """Grows a region, running each step as it is added: the values are known at once."""

    def __init__(self, x: Tensor, integer: Integer, budget: list[int]):
        self.integer, self.budget = integer, budget
        self.parts: list[nn.Module] = []
        self.steps: list[Step] = []
        self.values = [x]

    def pick(self, options: Sequence[Any]) -> Any:
        """Take one option; the first is the simplest."""
        return options[self.integer(0, len(options) - 1)]

    def rarely(self, one_in: int) -> bool:
        return self.integer(0, one_in - 1) == one_in - 1

    def shape(self, value: int) -> tuple[int, int, tuple[int, ...]]:
        """Give channels, number of axes and sizes."""
        _, channels, *sizes = self.values[value].shape
        return channels, len(sizes), tuple(sizes)

    def add(self, operation: str | nn.Module, *inputs: int, arguments: tuple[Any, ...] = ()) -> int:
        """Add a step if it fits; give its value, or that of its first input."""
        if isinstance(operation, nn.Module):
            self.parts.append(operation.double().eval())
            last = self.append(Step(len(self.parts) - 1, inputs))
            if last is None:
                self.parts.pop()
        else:
            last = self.append(Step(operation, inputs, arguments))
        return inputs[0] if last is None else last

    def again(self, part: int, value: int) -> int:
        """Call a part for a second time, if it fits."""
        last = self.append(Step(part, (value,)))
        return value if last is None else last

    def append(self, step: Step) -> int | None:
        """Run a step and keep it, if its value is a batch of the same length and not too large."""
        is_part = isinstance(step.operation, int)
        run = self.parts[step.operation] if is_part else OPERATIONS[step.operation]
        try:
            found = run(*[self.values[index] for index in step.inputs], *step.arguments)
        except (RuntimeError, ValueError, IndexError):
            return None
        if not 0 < found.numel() <= MAX_VALUES or len(found) != len(self.values[0]):
            return None
        self.steps.append(step)
        self.values.append(found)
        return len(self.values) - 1

    def inside(self, grow: Callable[["Builder", int], int], value: int) -> int:
        """Grow a part of the network in a module of its own."""
        inner = Builder(self.values[value], self.integer, self.budget)
        last = grow(inner, 0)
        if not last:
            return value
        return self.add(Region(inner.parts, inner.steps, [last]), value)


def convolution(b: Builder, v: int, out_channels: int = 0, stride: int = 0) -> int:
    """Add a convolution or linear layer; with a stride given, one that divides the size by it."""
    channels, ndim, sizes = b.shape(v)
    out = out_channels or b.pick([channels, 1, 2, 4, 6, 2 * channels])
    bias = b.pick([True, False])
    if not ndim:
        return b.add(nn.Linear(channels, out, bias), v)
    common = math.gcd(channels, out)
    groups = b.pick([1, 1, *[g for g in range(2, common + 1) if common % g == 0]])
    kernel = [b.pick([1, 3, 2, 5] if not stride else [1, 3, 5]) for _ in sizes]
    if b.rarely(2):
        kernel = kernel[:1] * ndim
    dilation = [b.pick([1, 1, 1, 2]) for _ in sizes]
    strides = [stride or b.pick([1, 1, 2, 3]) for _ in sizes]
    same = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    padding = same if stride else [b.pick([p, 0, 1, 2]) for p in same]
    mode = b.pick(["zeros"] * 9 + ["reflect", "replicate", "circular"])
    conv = CONVOLUTIONS[ndim](
        channels, out, kernel, strides, padding, dilation, groups, bias, padding_mode=mode
    )
    simple = groups == 1 and mode == "zeros" and set(dilation) == {1}
    return b.add(Standardized(conv) if simple and b.rarely(8) else conv, v)


def project(b: Builder, v: int, channels: int) -> nn.Module:
    own, ndim, _ = b.shape(v)
    if not ndim:
        return nn.Linear(own, channels)
    return CONVOLUTIONS[ndim](own, channels, 1, bias=b.pick([True, False]))


def same_padded(b: Builder, v: int) -> int:
    channels, ndim, _ = b.shape(v)
    if not ndim:
        return v
    kernel, dilation = [b.pick([2, 3, 4]) for _ in range(ndim)], b.pick([1, 2])
    return b.add(CONVOLUTIONS[ndim](channels, 2, kernel, padding="same", dilation=dilation), v)


def transposed(b: Builder, v: int) -> int:
    channels, ndim, _ = b.shape(v)
    if not ndim:
        return v
    kernel, stride, padding = b.pick([2, 1, 3]), b.pick([2, 1]), b.pick([0, 1])
    v = b.add(TRANSPOSED[ndim](channels, b.pick([2, 3]), kernel, stride, padding), v)
    return norm(b, v)


def norm(b: Builder, v: int) -> int:
    channels, ndim, _ = b.shape(v)
    options = {"affine": not b.rarely(6), "eps": b.pick([1e-5, 1e-3])}
    return b.add(NORMS[ndim](channels, **options), v)


def pool(b: Builder, v: int) -> int:
    _, ndim, _ = b.shape(v)
    if not ndim:
        return v
    kernel = b.pick([3, 2])
    stride, padding = b.pick([1, 2, 3]), b.pick([kernel // 2, 0])
    return b.add(POOLS[ndim](kernel, stride, padding, b.rarely(4), not b.rarely(4)), v)


def pad(b: Builder, v: int) -> int:
    _, ndim, _ = b.shape(v)
    amounts = [b.pick([1, 0, 2]) for _ in range(2 * ndim)]
    kind = b.pick(["pad", "pad", "pad", "module", "pad by value", "pad by mode"])
    if not any(amounts):
        return v
    if kind == "module":
        return b.add(ZERO_PADS[ndim](tuple(amounts)), v)
    if kind == "pad by mode":
        amounts = [amounts[i // 2 * 2] for i in range(2 * ndim)] if b.rarely(2) else amounts
        return b.add(kind, v, arguments=(tuple(amounts), b.pick(MODES)))
    more = {"pad": (), "pad by value": (0.5,)}[kind]
    return b.add(kind, v, arguments=(tuple(amounts), *more))


def cropping(b: Builder, v: int) -> int:
    _, ndim, _ = b.shape(v)
    lows, highs = ([b.pick([1, 0]) for _ in range(ndim)] for _ in range(2))
    return b.add("crop", v, arguments=(tuple(lows), tuple(highs))) if ndim else v


def arithmetic(b: Builder, v: int) -> int:
    channels, ndim, _ = b.shape(v)
    scalars = {"times": 0.7, "times right": -2, "divide": 1.5, "plus": 0.3, "minus from": 0.4}
    kind = b.pick([*scalars, "negate", "scale", "shift", "one gain"])
    if kind in scalars:
        return b.add(kind, v, arguments=(scalars[kind],))
    if kind == "negate":
        return b.add(kind, v)
    return b.add(Shift(channels, ndim) if kind == "shift" else Scale(channels, ndim), v)


def nothing(b: Builder, v: int) -> int:
    return b.add(b.pick([nn.Identity, nn.Dropout])(), v)


def some_channels(b: Builder, v: int) -> int:
    channels, _, _ = b.shape(v)
    if channels < 2:
        return v
    kind = b.pick(["channels", "chunk", "split", "permute channels", "shuffle"])
    cut = b.integer(1, channels - 1)
    which = b.integer(0, 1)
    arguments: dict[str, tuple[Any, ...]] = {
        "channels": b.pick([(0, cut, 1), (cut, None, 1), (0, None, 2)]),
        "chunk": (2, which),
        "split": ((cut, channels - cut), which),
        "permute channels": (tuple((i + cut) % channels for i in range(channels)),),
        "shuffle": (next(g for g in range(2, channels + 1) if channels % g == 0),),
    }
    return b.add(kind, v, arguments=arguments[kind])


def nonlinearity(b: Builder, v: int) -> int:
    _, ndim, _ = b.shape(v)
    kind = b.pick(["relu", "module", "in place", "relu_", "square", "max pool"])
    if kind == "max pool" and ndim:
        return b.add(MAX_POOLS[ndim](2, 1), v)
    if kind in ("in place", "relu_") and shares_input(b, v):
        return v
    if kind in OPERATIONS:
        return b.add(kind, v)
    return b.add(nn.ReLU(inplace=kind == "in place"), v)


def shares_input(b: Builder, v: int) -> bool:
    """Tell whether writing to the value would change the input, or may not be done."""
    own, of_input = b.values[v], b.values[0]
    return own.untyped_storage().data_ptr() == of_input.untyped_storage().data_ptr()


def older(b: Builder, v: int) -> int:
    """Read a value that something else may have read already."""
    fitting = [i for i, value in enumerate(b.values) if value.shape == b.values[v].shape]
    kind = b.pick(["add", "subtract", "add in place", "add_", "concatenate"])
    if kind in ("add_", "add in place") and shares_input(b, v):
        return v
    return b.add(kind, v, b.pick(fitting))


def linear(b: Builder, v: int) -> int:
    """Add a linear layer over the channels, or over the last spatial axis."""
    channels, ndim, sizes = b.shape(v)
    bias = b.pick([True, False])
    if not ndim or b.rarely(3):
        last = (channels, *sizes)[-1]
        return b.add(nn.Linear(last, last, bias), v)
    v = b.add("channels last", v)
    if b.rarely(4):
        v = b.add(Product(channels), v)
    v = b.add(nn.Linear(channels, b.pick([channels, 2, 4]), bias), v)
    return b.add("channels first", v)


def called_again(b: Builder, v: int) -> int:
    return b.again(b.integer(0, len(b.parts) - 1), v) if b.parts else v


def head(b: Builder, v: int) -> int:
    _, ndim, _ = b.shape(v)
    if not ndim:
        return v
    v = b.add(ADAPTIVE[ndim](1), v) if b.rarely(2) else b.add("spatial mean", v)
    return convolution(b, b.add("flatten", v))
