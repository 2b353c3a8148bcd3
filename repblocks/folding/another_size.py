"""Compare two models at another size of the input, and another batch, than the example's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from repblocks.errors import VerificationError
from repblocks.folding.changes import self_folded
from repblocks.folding.parting import first_difference
from repblocks.folding.piecewise import judge
from repblocks.folding.recording import run, view_of, wide_parts, wide_view_of
from repblocks.folding.reference import Reference, difference, rms
from repblocks.folding.tolerance import TOLERANCES

#: Sizes up to this are doubled, and larger ones halved, for the run to be short.
_SMALL = 64


def check_another_size(
    reference: Reference, model: nn.Module, folded: nn.Module, tolerance: float | None
) -> None:
    """Check that two models are alike at other inputs as well.

    Code may ask for sizes in ways that a trace does not see. A model need not take other sizes:
    the first that it takes is tried. The comparison is a rough one, in the models' own dtype; what
    it finds is judged in float64.

    Args:
        reference: The original on its example.
        model: The original.
        folded: What is the same at the example.
        tolerance: As for the example.

    Raises:
        VerificationError: if they are not.
    """
    original = view_of(model)
    for inputs in _others(reference.inputs):
        try:
            truth = run(original, inputs)
        except Exception:  # noqa: BLE001 # whatever a model raises at a size that it does not take
            continue
        problem = _compare(folded, inputs, wide_parts(truth))
        if problem and not _is_rounding(
            Reference(model, inputs, reference.dtype), folded, tolerance
        ):
            raise _error(model, folded, inputs, reference.dtype, problem)
        return


def _is_rounding(reference: Reference, folded: nn.Module, tolerance: float | None) -> bool:
    try:
        return judge(reference, wide_view_of(folded), tolerance).passed
    except Exception:  # noqa: BLE001 # the folded model's, or of an output that is another
        return False


def _error(
    model: nn.Module, folded: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype, problem: str
) -> VerificationError:
    try:
        path = first_difference(model, folded, inputs, dtype, self_folded(model, folded))
    except Exception:  # noqa: BLE001 # the folded model's
        path = None
    shapes = [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    at = f" The first module that differs is '{path}'." if path else ""
    return VerificationError(
        f"The folded model differs from its original at inputs of shapes {shapes}: {problem}.{at}",
        difference=math.inf,
        tolerance=0.0,
        path=path,
    )


def _compare(folded: nn.Module, inputs: tuple[Any, ...], truth: dict[str, Tensor]) -> str:
    try:
        found = wide_parts(run(view_of(folded), inputs))
    except Exception as error:  # noqa: BLE001 # whatever it raises, the original did not
        return f"the folded model raises {type(error).__name__}: {error}"
    shapes, expected = ({k: tuple(t.shape) for k, t in ts.items()} for ts in (found, truth))
    if shapes != expected:
        return f"the output has shapes {shapes}, the original's {expected}"
    room = max(TOLERANCES[t].useful if t in TOLERANCES else 1.0 for t in _dtypes(folded))
    errors = {k: rms(difference(found[k], truth[k])) / (rms(truth[k]) or 1.0) for k in truth}
    worst = max(errors.values(), default=0.0)
    return f"the RMS difference is {worst:.3g} of the output" if worst > room else ""


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    found = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return found or {torch.get_default_dtype()}


def _others(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Make inputs of other sizes: of all axes after the channels, of the second, of the batch."""
    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim]
    batch = tensors[0].shape[0] if tensors else 0
    if not all(x.numel() for x in tensors) or not batch:
        return
    for axes in (slice(2, None), slice(1, 2), slice(0, 0)):

        def resized(x: Any, axes: slice = axes) -> Any:
            if not isinstance(x, Tensor) or not x.ndim:
                return x
            chosen = set(range(x.ndim)[axes]) if x.ndim > 2 else set()
            sizes = [_other(size) if axis in chosen else size for axis, size in enumerate(x.shape)]
            sizes[0] += sizes[0] == batch
            return _tiled(x.detach(), sizes)

        yield tree_map(resized, inputs)


def _other(size: int) -> int:
    return 2 * size if size <= _SMALL else size // 2


def _tiled(x: Tensor, sizes: list[int]) -> Tensor:
    """Repeat and cut a tensor to other sizes; its values stay valid ones."""
    for axis, size in enumerate(sizes):
        places = torch.arange(size, device=x.device) % x.shape[axis]
        x = x.index_select(axis, places)
    return x
