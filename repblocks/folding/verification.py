"""Prove that a folded model computes the function of its original, or say where they part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repblocks.errors import VerificationError
from repblocks.folding.another_size import check_another_size
from repblocks.folding.changes import changes, self_folded
from repblocks.folding.parting import first_difference
from repblocks.folding.piecewise import Piecewise, judge
from repblocks.folding.recording import parts, run, view_of, wide, wide_view_of
from repblocks.folding.reference import Comparison, Reference, difference, differences, rms
from repblocks.folding.tolerance import TOLERANCES


@dataclass(frozen=True)
class Verification(Comparison):
    """The result of comparing a folded model with its original.

    ``max_abs``, ``max_rel`` and ``rms_rel`` are of the folded weights, run in float64.

    Args:
        dtype: The type the folded model runs in.
        run_rms_rel: RMS difference of the folded model, run in that type: to be compared with
            ``own_rms_rel``. Where arithmetic rounds is the machine's choice, so it decides nothing.
        num_modules: Number of modules that were compared on their own input.
        note: What could not be judged by the output, and how it was judged instead.
        first_difference: The first module where they part; None, as a difference raises.
    """

    dtype: str
    run_rms_rel: float
    num_modules: int
    note: str = ""
    first_difference: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the models are the same function: yes, as a difference raises."""
        return True


def verify(
    model: nn.Module, folded: nn.Module, example_input: Any, *, tolerance: float | None = None
) -> Verification:
    """Compare a folded model with its original, both in float64 and in evaluation mode.

    The output decides. A module that has folded itself (same class, other children) must agree
    on its own as well, because a later layer may hide what it lost. If the output does not depend
    on the input, or its shape depends on values (detections), each change must stand in a module
    that agrees on its own. Weights are widened where they are used: there is no float64 copy of
    the models. Both models, their modes and the global random state stay as they are. If the
    original takes an input of another size, they must be alike there too.

    Args:
        model: The original.
        folded: What is said to be the same function.
        example_input: A tensor, or a tuple of the models' positional arguments.
        tolerance: Largest RMS difference relative to the part of the output that depends on the
            input. By default what rounding the folded weights to their dtype explains.

    Raises:
        VerificationError: if they differ by more, an output has another dtype or is not finite,
            or it cannot be told.
        ConfigurationError: if the output holds no tensor, or the dtype has no tolerance.
    """
    reference = Reference(model, example_input, _dtype(folded, example_input))
    pieces = _Pieces(reference, model, folded, tolerance)
    pieces.watch()
    try:
        output = _check_run(reference, folded)
        overall = _judge_whole(reference, pieces.view, tolerance)
        note, count = _judge_changes(reference, overall, pieces)
    except VerificationError as error:
        first = first_difference(
            model, folded, reference.inputs, reference.dtype, self_folded(model, folded)
        )
        raise _relocated(error, first) from error
    if reference.is_stable and reference.has_signal:
        count += _check_blocks(reference, pieces)
    if reference.is_stable:
        check_another_size(reference, model, folded, tolerance)
    scale = overall.max_abs / overall.max_rel if overall.max_rel else _scale(reference)
    return Verification(
        **asdict(replace(overall, own_rms_rel=_largest(reference.own) / scale)),
        dtype=str(reference.dtype).removeprefix("torch."),
        run_rms_rel=_largest(differences(output, reference.truth)) / scale,
        num_modules=count,
        note=note,
    )


class _Pieces:
    """What is judged module by module: blocks that folded themselves, or else all changes.

    Which of them will be asked for is guessed from runs in the own dtype, so that they are judged
    while the original runs in float64 anyway. A wrong guess costs another run, and nothing else.
    """

    def __init__(
        self, reference: Reference, model: nn.Module, folded: nn.Module, tolerance: float | None
    ) -> None:
        self.view, self.tolerance = wide_view_of(folded), tolerance
        self._reference, self._model, self._folded = reference, model, folded
        self._judged: dict[bool, Piecewise] = {}

    def watch(self) -> None:
        """Take the truth, and judge in the same run."""
        all_changes = self._reference.seems_mute(self.tolerance)
        pieces = self._pieces(all_changes)
        with pieces.watching(self._reference.view):
            self._reference.check()
        self._judged[all_changes] = pieces

    def judged(self, *, all_changes: bool) -> Piecewise:
        """Give what was judged, in a run of its own if that was not foreseen."""
        if all_changes not in self._judged:
            self._judged[all_changes] = self._pieces(all_changes)
            self._judged[all_changes].run(self._model, self._reference.inputs)
        return self._judged[all_changes]

    def _pieces(self, all_changes: bool) -> Piecewise:
        find = changes if all_changes else self_folded
        return Piecewise(
            self._model,
            self.view,
            find(self._model, self._folded),
            self._reference.dtype,
            self.tolerance,
            widen_search=all_changes,
        )


def _dtype(folded: nn.Module, example_input: Any) -> torch.dtype:
    """Find the type the folded model runs in: that of its weights, without any of its input."""
    leaves = [x for x in tree_leaves(example_input) if isinstance(x, Tensor)]
    tensors = [*folded.parameters(), *leaves]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


def _check_run(reference: Reference, folded: nn.Module) -> dict[str, Tensor]:
    """Run the folded model in its own dtype; its output must be of the kind of the original's."""
    found, own = parts(run(view_of(folded), reference.inputs)), parts(reference.own_output)
    actual, expected = ({k: str(t.dtype) for k, t in ts.items()} for ts in (found, own))
    if found.keys() == own.keys() and actual != expected:
        raise _error(f"The output has tensors of dtypes {actual}, the original's {expected}.")
    for part, tensor in found.items():
        if part in own and own[part].shape == tensor.shape:
            bad = int((~difference(wide(tensor), wide(own[part])).isfinite()).sum())
            if bad:
                raise _error(f"The output{part} is not finite in {bad} of {tensor.numel()} values.")
    return {part: wide(tensor) for part, tensor in found.items()}


def _judge_whole(reference: Reference, view: nn.Module, tolerance: float | None) -> Comparison:
    """Judge by the output; where its shape depends on values, they need not agree."""
    try:
        overall = judge(reference, view, tolerance)
    except VerificationError:
        if reference.is_stable:
            raise
        return Comparison(math.nan, math.nan, math.nan, math.nan, math.nan)
    if reference.is_stable and not overall.passed:
        raise _failure("The folded model differs from its original", reference, overall)
    return overall


def _judge_changes(reference: Reference, overall: Comparison, pieces: _Pieces) -> tuple[str, int]:
    """Where the output tells nothing, judge by the modules that changed."""
    why = _why_untold(reference, overall, pieces.tolerance)
    if not why:
        return "", 0
    judged = pieces.judged(all_changes=True)
    note = f"the output {why}: each change was judged on its own"
    if judged.unproven:
        left = f"'{judged.unproven[0]}'" if judged.unproven[0] else "the whole network"
        if not reference.is_stable or not reference.has_signal:
            raise _error(
                f"The original's output {why}, so every fold would seem right, and no module in "
                f"which {left} stands agrees on its own. Calibrate its BatchNorm statistics, load "
                "trained weights, or give another input."
            )
        note += f", but {len(judged.unproven)} by the output alone, among them {left}"
    return note, judged.num_modules


def _why_untold(reference: Reference, overall: Comparison, tolerance: float | None) -> str:
    """Say why an output that agrees tells too little; empty if it tells enough."""
    if not reference.is_stable:
        return "has shapes that depend on values"
    if not reference.has_signal:
        return "does not depend on its input"
    if tolerance is None and overall.tolerance > TOLERANCES[reference.dtype].useful:
        return f"hides differences up to {overall.tolerance:.2g} of what depends on its input"
    return ""


def _check_blocks(reference: Reference, pieces: _Pieces) -> int:
    """Compare each block that has folded itself, on its own input."""
    judged = pieces.judged(all_changes=False)
    for path, found in judged.differing.items():
        what = "The output agrees, but a block differs from its original"
        error = _error(f"{what}.") if found is None else _failure(what, reference, found)
        raise _relocated(error, path)
    return judged.num_modules


def _scale(reference: Reference) -> float:
    return max(map(rms, reference.truth.values())) or 1.0


def _largest(errors: Mapping[str, float]) -> float:
    return max(errors.values(), default=math.nan)


def _relocated(error: VerificationError, first: str | None) -> VerificationError:
    at = f" The first module that differs is '{first}'." if first else ""
    return VerificationError(
        f"{error}{at}", difference=error.difference, tolerance=error.tolerance, path=first
    )


def _failure(what: str, reference: Reference, found: Comparison) -> VerificationError:
    return VerificationError(
        f"{what} ({reference.dtype}): RMS difference {found.rms_rel:.3g} of the part that depends "
        f"on the input, allowed {found.tolerance:.3g}; largest difference {found.max_abs:.3g}.",
        difference=found.rms_rel,
        tolerance=found.tolerance,
    )


def _error(message: str) -> VerificationError:
    return VerificationError(message, difference=math.nan, tolerance=0.0)
