"""Random linear regions: small networks of everything a fold may merge, mostly of borders.

One generator makes them from numbers: those of a seed, or those that Hypothesis draws and shrinks.
Whatever does not fit (a kernel larger than its image, say) is left out as it comes, so that every
list of numbers is a network.
"""

import random

import torch
from hypothesis import strategies as st
from region_elements import (
    NORMS,
    POOLS,
    Builder,
    Integer,
    arithmetic,
    called_again,
    convolution,
    cropping,
    head,
    linear,
    nonlinearity,
    norm,
    nothing,
    older,
    pad,
    pool,
    project,
    same_padded,
    some_channels,
    transposed,
)
from region_module import Region
from torch import Tensor
from truth import calibrate


def fit(b: Builder, v: int, like: int, channels: int = 0) -> int:
    """Bring a value to the sizes of another, and to a number of channels if given."""
    if channels and b.shape(v)[0] != channels:
        v = b.add(project(b, v, channels), v)
    lows, highs, amounts = [], [], []
    for own, size in zip(b.shape(v)[2], b.shape(like)[2], strict=True):
        change = abs(own - size)
        low = b.integer(0, change)
        lows.append(low if own > size else 0)
        highs.append(change - low if own > size else 0)
        amounts = [*([low, change - low] if own < size else [0, 0]), *amounts]
    if any(lows + highs):
        v = b.add("crop", v, arguments=(tuple(lows), tuple(highs)))
    return b.add("pad", v, arguments=(tuple(amounts),)) if any(amounts) else v


def branch(b: Builder, v: int, channels: int, stride: int) -> int:
    """Grow one branch as the papers do, or any chain."""
    own, ndim, _ = b.shape(v)
    kind = b.pick(["conv", "conv norm", "series", "pool", "bare", "any"])
    if kind == "any":
        return chain(b, v)
    if kind == "bare":
        return norm(b, v) if b.rarely(2) else v
    if kind == "pool" and ndim:
        padded = b.add(POOLS[ndim](3, stride, 1, count_include_pad=b.pick([True, False])), v)
        return norm(b, b.add(project(b, padded, channels), padded))
    if kind == "series":
        v = convolution(b, norm(b, b.add(project(b, v, own), v)), channels, stride)
        return b.add(project(b, v, channels), v) if b.rarely(2) else v
    v = convolution(b, v, channels, stride)
    return v if kind == "conv" else norm(b, v)


def branches(b: Builder, v: int) -> int:
    """Read a value by several branches, and sum or concatenate what they give."""
    joins = ["add", "subtract", "stack and sum", "concatenate", "sum of list", "stack and mean"]
    join = b.pick(joins)
    channels, stride = b.pick([b.shape(v)[0], 2, 4]), b.pick([1, 1, 2])
    count = 2 if join in ("add", "subtract") else b.pick([2, 3])

    def one(inner: Builder, value: int) -> int:
        return branch(inner, value, channels, stride)

    ends = [b.inside(one, v) if b.rarely(3) else one(b, v) for _ in range(count)]
    wanted = 0 if join == "concatenate" else b.shape(ends[0])[0]
    if len({b.shape(end)[1] for end in ends}) > 1:
        return ends[0]
    return b.add(join, *[fit(b, end, ends[0], wanted) for end in ends])


def pieces(b: Builder, v: int) -> int:
    """Treat pieces of the channels differently, and put them together again."""
    channels, _, _ = b.shape(v)
    if channels < 2:
        return v
    cut = b.integer(1, channels - 1)
    split = [b.add("split", v, arguments=((cut, channels - cut), which)) for which in (0, 1)]
    ends = [chain(b, piece) for piece in split]
    if len({b.shape(end)[1] for end in ends}) > 1:
        return ends[0]
    return b.add("concatenate", *[fit(b, end, ends[0]) for end in ends])


def nested(b: Builder, v: int) -> int:
    return b.inside(chain, v)


ELEMENTS = (
    *[convolution] * 6,
    *[norm] * 4,
    *[branches] * 5,
    *[pieces] * 2,
    *[arithmetic] * 2,
    *[some_channels] * 2,
    *[pool, pad, cropping, nested, nothing, older, transposed, same_padded, linear],
    *[nonlinearity] * 2,
    *[called_again, head],
)


def chain(b: Builder, v: int) -> int:
    """Add up to three elements, while the budget lasts."""
    for _ in range(b.integer(1, 3)):
        if b.budget[0] <= 0:
            break
        b.budget[0] -= 1
        v = b.pick(ELEMENTS)(b, v)
    return v


def grow(integer: Integer) -> tuple[Region, Tensor]:
    """Make a region and an example input from numbers; the same numbers give the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(integer(0, 2**16))
        budget = [integer(1, 12)]
        ndim = (2, 1, 2, 3, 2, 0)[integer(0, 5)]
        sizes = [integer(1, 5 if ndim == 3 else 8) for _ in range(ndim)]
        x = torch.randn(3, integer(1, 6), *sizes, dtype=torch.float64)
        b = Builder(x.clone(), integer, budget)
        v = 0
        while budget[0] > 0:
            v = chain(b, v)
        outputs = [v, b.integer(0, v)] if b.rarely(8) else [v]
        region = Region(b.parts, b.steps, outputs)
        calibrate(region, x.clone())
    for layer in region.modules():
        if isinstance(layer, tuple(NORMS.values())):
            layer.running_var.clamp_(min=0.05)  # or a constant channel grows 300 times larger
            if b.rarely(30):
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
                layer.track_running_stats = False
    return region, x


def random_region(seed: int) -> tuple[Region, Tensor]:
    """Make the region of a seed, and an example input, both in float64."""
    return grow(random.Random(seed).randint)


@st.composite
def regions(draw: st.DrawFn) -> tuple[Region, Tensor]:
    """Draw a region and an example input; shrinks to few, simple steps."""
    return grow(lambda low, high: draw(st.integers(low, high)))
