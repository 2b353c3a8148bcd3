"""Branches that give equally many outputs at one size of the input, if not at every size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from repblocks.algebra.axis import Axis
from repblocks.folding.flow import Step
from repblocks.folding.operation import Located


def aligned(values: Mapping[Step, Located]) -> Mapping[Step, Located]:
    """Return maps, the same at the size of the example, whose outputs are equally many at any size.

    With a stride, the last positions may be read by no tap. A kernel of 3 that is padded by one
    zero behind, and one of 1, which is not padded, both with a stride of 2, give 8 outputs of 16
    inputs, but 7 and 8 of 15: where it is 16 for ever, the second may leave out the last one.

    Args:
        values: By the step that is joined, what it is of their common source.
    """
    sizes = {step.shape[2:] if step.shape is not None else None for step in values}
    maps = [value.map for value in values.values()]
    ndim = max(len(value.axes) for value in maps)
    if len(sizes) > 1 or None in sizes or not ndim:
        return values
    if any(value.is_viewed or value.axis != 1 for value in values.values()):
        return values
    raised = [value.with_axes(ndim) for value in maps]
    if any(value.padding_mode != "zeros" for value in raised):
        return values
    on_axes = [_cropped(axes) for axes in zip(*(value.axes for value in raised), strict=True)]
    axes_of_each = zip(values.items(), raised, zip(*on_axes, strict=True), strict=True)
    return {
        step: value.having(replace(own, axes=axes)) for (step, value), own, axes in axes_of_each
    }


def _cropped(axes: Sequence[Axis]) -> list[Axis]:
    """Crop, or pad less, at the end, where the outputs are equally many."""
    least = min(axis.slack for axis in axes)
    if len({axis.stride for axis in axes}) > 1:
        return list(axes)
    return [replace(axis, high=axis.high - (axis.slack - least)) for axis in axes]
