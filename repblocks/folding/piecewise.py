"""Judge a fold module by module, each on the input that the original gives it.

Where the output tells nothing (it does not depend on the input, or its shape depends on values),
a fold is right if each change stands in a module that is the same function in both models.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from repblocks.errors import VerificationError
from repblocks.folding.changes import at_or_below
from repblocks.folding.recording import other, run_wide, wide_parts, wide_view_of
from repblocks.folding.reference import Comparison, Reference, differences
from repblocks.folding.widening import paused


def judge(reference: Reference, folded: nn.Module, tolerance: float | None = None) -> Comparison:
    """Run a folded model in float64 and compare it with the original.

    A right fold differs from its original only because its weights were rounded when they were
    cast. How much that may be on this input is measured by rounding them once more, unless they
    differ by less than any rounding.

    Args:
        reference: The original on its input.
        folded: A view of the folded model (see :func:`wide_view_of`).
        tolerance: As for the whole model.

    Raises:
        VerificationError: if the output has other tensors or shapes, or is not finite.
    """
    inputs, named = reference.inputs, reference.named
    found = run_wide(folded, inputs, **named)
    compared = reference.compare(found, tolerance, {})
    if compared.passed or tolerance is not None or reference.dtype is torch.float64:
        return compared
    rounding = torch.finfo(reference.dtype).eps / 2
    rounded = run_wide(folded, inputs, rounding, **named)
    return reference.compare(found, None, differences(rounded, found))


class Piecewise:
    """Which changes are proven right by a module in which they stand.

    Args:
        model: The original.
        folded: A view of the folded model (see :func:`wide_view_of`).
        changed: Names of the modules that differ.
        dtype: The type that is judged.
        tolerance: As for the whole model.
        widen_search: Whether a module may differ if one that it stands in is the same function.
    """

    def __init__(
        self,
        model: nn.Module,
        folded: nn.Module,
        changed: Collection[str],
        dtype: torch.dtype,
        tolerance: float | None,
        *,
        widen_search: bool = True,
    ) -> None:
        self._changed, self._dtype, self._tolerance = changed, dtype, tolerance
        self._old, self._new = dict(model.named_modules()), dict(folded.named_modules())
        self._widen_search = widen_search
        self._agreed: set[str] = set()
        self.differing: dict[str, Comparison | None] = {}

    def run(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Run the original, and each module that holds a change beside its folded form."""
        if self._changed:
            model = wide_view_of(model)
            with self.watching(model):
                run_wide(model, inputs)

    @contextmanager
    def watching(self, view: nn.Module) -> Iterator[None]:
        """Judge while a view of the original runs in float64."""
        handles = [
            handle
            for path, module in view.named_modules()
            if path and path in self._new and self._may_hold(path)
            for handle in self._watch(path, module)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def num_modules(self) -> int:
        """How many modules were the same function on their own."""
        return len(self._agreed - self.differing.keys())

    @property
    def unproven(self) -> list[str]:
        """The changes that stand in no module that is the same function."""
        return [place for place in self._changed if not self._is_proven(place)]

    def _may_hold(self, path: str) -> bool:
        """Tell whether to look here; a layer of other weights never agrees on its own."""
        if not self._widen_search:
            return path in self._changed
        both = self._old[path], self._new[path]
        is_layer = not any([*m.children()] for m in both) and any([*m.parameters()] for m in both)
        return not is_layer and any(at_or_below(place, path) for place in self._changed)

    def _is_proven(self, place: str) -> bool:
        proven = self._agreed - self.differing.keys()
        return any(at_or_below(place, path) for path in proven)

    def _is_open(self, path: str) -> bool:
        if path in self._changed or path in self._agreed:
            return path not in self.differing
        return any(at_or_below(place, path) for place in self.unproven)

    def _watch(self, path: str, module: nn.Module) -> list[RemovableHandle]:
        waiting: list[Any] = []

        def enter(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            waiting.append(tree_map(_copy, (args, named)))  # what is called may change its own

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            args, named = waiting.pop()
            if self._is_open(path):
                with paused():
                    self._compare(path, args, named, output)

        # Around the module's own hooks, which are part of what it does.
        return [
            module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            module.register_forward_hook(leave),
        ]

    def _compare(
        self, path: str, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        try:
            reference = self._reference(path, args, named, output)
        except VerificationError:
            return  # No value of the original's is finite, which proves nothing.
        try:
            found = judge(reference, self._new[path], self._tolerance)
        except VerificationError:
            self.differing[path] = None
            return
        if not found.passed:
            self.differing[path] = found
        elif reference.has_signal:
            self._agreed.add(path)

    def _reference(
        self, path: str, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Reference:
        if not _is_constant((args, named)):
            truth = wide_parts(output)
            reference = Reference(self._old[path], args, self._dtype, named=named, truth=truth)
            if reference.has_signal:
                return reference
        # What reaches it is dead: any other input judges better.
        args, named = other((args, named), spread=1.0)
        return Reference(self._old[path], args, self._dtype, named=named)


def _copy(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x


def _is_constant(arguments: Any) -> bool:
    """Tell whether all values of each tensor are the same, so that no output can depend on them."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return all(t.is_floating_point() and bool((t == t.flatten()[:1]).all()) for t in tensors)
