"""The original in float64: the truth that folded and exported forms are measured against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.errors import ConfigurationError, VerificationError
from repblocks.folding.recording import (
    evaluation_copy,
    other,
    run,
    run_wide,
    view_of,
    wide_parts,
    wide_view_of,
)
from repblocks.folding.tolerance import TOLERANCES, limit

# Below this share of the output's size, what depends on the input is float64 rounding.
_NO_SIGNAL = 1e-13

# Above this share of the output's size, it is no float32 rounding, not even that of a GPU's TF32.
_CLEAR_SIGNAL = 0.03


@dataclass(frozen=True)
class Comparison:
    """How far an output is from the truth.

    Relative numbers are relative to the signal: the RMS of the part of the true output that
    depends on the input (at most the RMS of the output; all of it, if none depends). An output
    that hardly depends on its input would otherwise pass whatever was folded.

    Args:
        max_abs: Largest absolute difference.
        max_rel: The same, relative to the signal.
        rms_rel: RMS difference, relative to the signal.
        own_rms_rel: The same number for the original, run in the dtype that is judged.
        tolerance: Largest ``rms_rel`` allowed.
    """

    max_abs: float
    max_rel: float
    rms_rel: float
    own_rms_rel: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; never for NaN."""
        return self.rms_rel <= self.tolerance


class Reference:
    """A float64 run of a model, and how far the model's own dtype is from it.

    Args:
        model: The original, in any mode; it stays as it is.
        example_input: A tensor, or a tuple of the model's positional arguments.
        dtype: The type that is judged: ``float64``, ``float32``, ``float16`` or ``bfloat16``.
        named: More arguments of the model.
        truth: The tensors of the float64 run, if there was one.

    Raises:
        ConfigurationError: if ``dtype`` has no tolerance.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        dtype: torch.dtype,
        *,
        named: Mapping[str, Any] | None = None,
        truth: dict[str, Tensor] | None = None,
    ) -> None:
        if dtype not in TOLERANCES:
            known = ", ".join(str(known) for known in TOLERANCES)
            raise ConfigurationError(f"No tolerance is known for {dtype}; known: {known}.")
        self.dtype = dtype
        self.inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        self.named = named or {}
        self._model = model
        self._known_truth = truth

    @cached_property
    def truth(self) -> dict[str, Tensor]:
        """The tensors of the output, in float64.

        Raises:
            ConfigurationError: if the output holds no tensor.
            VerificationError: if no value of one is finite.
        """
        known = self._known_truth
        found = run_wide(self.view, self.inputs, **self.named) if known is None else known
        _check_truth(found)
        return found

    def check(self) -> None:
        """Run the model in float64, unless it was, and raise as :attr:`truth` does."""
        _ = self.truth

    @cached_property
    def view(self) -> nn.Module:
        """The view of the original that runs in float64."""
        return wide_view_of(self._model)

    @cached_property
    def is_stable(self) -> bool:
        """Whether another input of the same shapes gives an output of the same shapes."""
        return _shapes(self.truth) == _shapes(self._changed)

    @cached_property
    def has_signal(self) -> bool:
        """Whether the output depends on the input."""
        sizes = {part: rms(tensor) for part, tensor in self.truth.items()}
        return any(self._signal(part) > _NO_SIGNAL * size for part, size in sizes.items())

    def seems_mute(self, tolerance: float | None) -> bool:
        """Tell whether runs in the own dtype already show that the output tells too little."""
        own, changed = wide_parts(self.own_output), wide_parts(self._changed_output)
        if _shapes(own) != _shapes(changed):
            return True
        allowed = TOLERANCES[self.dtype]
        share = allowed.size / allowed.useful if tolerance is None else 0.0
        seen = differences(changed, own)
        return all(seen[part] <= share * rms(tensor) for part, tensor in own.items())

    @cached_property
    def own_output(self) -> Any:
        """The original's output in the dtype that is judged."""
        return run(self._narrow, self.inputs, **self.named)

    @cached_property
    def own(self) -> dict[str, float]:
        """RMS error of the original, run in the dtype that is judged, of each tensor."""
        return differences(wide_parts(self.own_output), self.truth)

    @cached_property
    def _narrow(self) -> nn.Module:
        dtypes = {p.dtype for p in self._model.parameters() if p.is_floating_point()}
        is_own = dtypes <= {self.dtype}
        return view_of(self._model) if is_own else evaluation_copy(self._model, self.dtype)

    @cached_property
    def _other_inputs(self) -> Any:
        return other((self.inputs, dict(self.named)))

    @cached_property
    def _changed_output(self) -> Any:
        inputs, named = self._other_inputs
        return run(self._narrow, inputs, **named)

    @cached_property
    def _changed(self) -> dict[str, Tensor]:
        """The output for another input: how much does it depend on that?

        Where float32 shows a dependence that is far above its rounding, it measures it as well as
        float64 does, in less time.
        """
        if self.dtype is torch.float32:
            found = wide_parts(self._changed_output)
            if self._is_clear(found):
                return found
        inputs, named = self._other_inputs
        return run_wide(self.view, inputs, **named)

    def _is_clear(self, changed: dict[str, Tensor]) -> bool:
        if _shapes(changed) != _shapes(self.truth):
            return False
        seen = differences(changed, self.truth)
        return all(seen[part] > _CLEAR_SIGNAL * rms(tensor) for part, tensor in self.truth.items())

    def compare_output(self, output: Any, tolerance: float | None = None) -> Comparison:
        """Measure a whole output in the dtype that is judged.

        Args:
            output: As the model gives it, in any dtype, on any device.
            tolerance: Largest RMS difference relative to the signal; by default what rounding
                explains: a multiple of the original's own error.

        Raises:
            VerificationError: if the output has other tensors or shapes, or is not finite where
                the original's is.
        """
        return self.compare(wide_parts(output), tolerance, self.own)

    def compare(
        self, found: dict[str, Tensor], tolerance: float | None, rounding: Mapping[str, float]
    ) -> Comparison:
        """Measure the tensors of an output; of several the one furthest past its tolerance.

        Args:
            found: In float64 on the CPU.
            tolerance: Largest RMS difference relative to the signal, or None.
            rounding: RMS error of each tensor that rounding was seen to make.

        Raises:
            VerificationError: as for :meth:`compare_output`.
        """
        self._check_shapes(found)
        all_compared = [
            self._compare(part, value, tolerance, rounding) for part, value in found.items()
        ]
        return max(all_compared, key=lambda one: one.rms_rel / max(one.tolerance, 1e-300))

    def _compare(
        self, part: str, value: Tensor, tolerance: float | None, rounding: Mapping[str, float]
    ) -> Comparison:
        truth = self.truth[part]
        size, signal = rms(truth), min(rms(truth), self._signal(part))
        scale = signal if signal > _NO_SIGNAL * size else size or 1.0
        seen = rounding.get(part, 0.0)
        if tolerance is None:
            tolerance = limit(self.dtype, size=size, signal=scale, rounding=seen) / scale
        error = difference(value, truth)
        largest = float(error.abs().max()) if error.numel() else 0.0
        return Comparison(largest, largest / scale, rms(error) / scale, seen / scale, tolerance)

    def _signal(self, part: str) -> float:
        truth, changed = self.truth[part], self._changed.get(part)
        if changed is None or changed.shape != truth.shape:
            return math.inf
        return rms(difference(changed, truth))

    def _check_shapes(self, found: dict[str, Tensor]) -> None:
        expected, actual = _shapes(self.truth), _shapes(found)
        if expected != actual:
            raise VerificationError(
                f"The output has tensors of shapes {actual}, the original's {expected}.",
                difference=math.inf,
                tolerance=0.0,
            )
        for part, tensor in found.items():
            bad = int((~difference(tensor, self.truth[part]).isfinite()).sum())
            if bad:
                raise _not_finite(f"The output{part}", bad, tensor.numel())


def _check_truth(truth: Mapping[str, Tensor]) -> None:
    if not truth:
        raise ConfigurationError(
            "The model's output holds no tensor, so there is nothing to compare; allowed are "
            "a tensor and tuples, lists, dicts and dataclasses of tensors."
        )
    for part, tensor in truth.items():
        if tensor.numel() and not tensor.isfinite().any():
            raise _not_finite(f"The original's output{part}", tensor.numel(), tensor.numel())


def differences(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """Take the RMS difference of each tensor that both have in the same shape."""
    return {
        part: rms(difference(tensor, truth[part]))
        for part, tensor in found.items()
        if part in truth and truth[part].shape == tensor.shape
    }


def difference(found: Tensor, truth: Tensor) -> Tensor:
    """Subtract; what is the same infinity, or NaN in both, does not differ."""
    same = (found == truth) | (found.isnan() & truth.isnan())
    return torch.where(same, 0.0, found - truth)


def rms(tensor: Tensor) -> float:
    """Take the root of the mean square of what is finite, 0 if there is nothing."""
    finite = tensor[tensor.isfinite()] if not tensor.isfinite().all() else tensor
    return float(finite.square().mean().sqrt()) if finite.numel() else 0.0


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {part: tuple(tensor.shape) for part, tensor in tensors.items()}


def _not_finite(name: str, bad: int, count: int) -> VerificationError:
    return VerificationError(
        f"{name} is not finite in {bad} of {count} values. Check the weights and the BatchNorm "
        "statistics for NaN, infinity and overflow of the dtype.",
        difference=math.inf,
        tolerance=0.0,
    )
