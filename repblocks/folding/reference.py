"""The original in float64: the truth that folded and exported forms are measured against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.errors import ConfigurationError, VerificationError
from repblocks.folding.recording import Site, Visitor, evaluation_copy, parts, run
from repblocks.folding.tolerance import TOLERANCES, limit

# Below this share of the output's size, what depends on the input is float64 rounding.
_NO_SIGNAL = 1e-13


@dataclass(frozen=True)
class Comparison:
    """How far an output is from the truth.

    Relative numbers are relative to the signal: the RMS of the part of the true output that
    depends on the input (at most the RMS of the output). An output that hardly depends on its
    input would otherwise pass whatever was folded.

    Args:
        max_abs: Largest absolute difference.
        max_rel: The same, relative to the signal.
        rms_rel: RMS difference, relative to the signal.
        own_rms_rel: The same number for the original, run in the same dtype.
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
        model: The original, in any mode; copies are run, it stays as it is.
        example_input: A tensor, or a tuple of the model's positional arguments.
        dtype: The type that is judged: ``float64``, ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        ConfigurationError: if ``dtype`` has no tolerance, or the output holds no tensor.
        VerificationError: if the true output is not finite, or does not depend on the input.
    """

    def __init__(self, model: nn.Module, example_input: Any, dtype: torch.dtype) -> None:
        if dtype not in TOLERANCES:
            known = ", ".join(str(known) for known in TOLERANCES)
            raise ConfigurationError(f"No tolerance is known for {dtype}; known: {known}.")
        self.dtype = dtype
        self.inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        self.truth: dict[Site, Tensor] = {}
        self._own: dict[Site, float] = {}
        self._signal: dict[Site, float] = {}
        original = evaluation_copy(model, torch.float64)
        run(original, self.inputs, self._keep)
        run(original, _other(self.inputs), self._difference_into(self._signal))
        del original
        run(evaluation_copy(model, dtype), self.inputs, self._difference_into(self._own))
        self._check()

    def compare(self, site: Site, value: Tensor, tolerance: float | None = None) -> Comparison:
        """Measure one tensor against the truth at the same place.

        Args:
            site: A place of ``truth``.
            value: Of the truth's shape, in any dtype, on any device.
            tolerance: Largest RMS difference relative to the signal; by default what rounding
                explains, by dtype.
        """
        truth = self.truth[site]
        size, own = rms(truth), self._own.get(site, 0.0)
        signal = min(size, self._signal.get(site, size))
        scale = signal if signal > _NO_SIGNAL * size else size or 1.0
        error = wide(value) - truth
        if tolerance is None:
            allowed = limit(
                self.dtype, size=size, signal=scale, own=own, count=max(1, truth.numel())
            )
            tolerance = allowed / scale
        largest = float(error.abs().max()) if error.numel() else 0.0
        return Comparison(largest, largest / scale, rms(error) / scale, own / scale, tolerance)

    def compare_output(self, output: Any, tolerance: float | None = None) -> Comparison:
        """Measure a whole output; of several tensors the one furthest past its tolerance.

        Raises:
            VerificationError: if the output has other tensors or shapes, or is not finite.
        """
        found = {Site("", 0, part): tensor for part, tensor in parts(output).items()}
        self._check_shapes(found)
        all_compared = [self.compare(site, value, tolerance) for site, value in found.items()]
        return max(all_compared, key=lambda one: one.rms_rel / max(one.tolerance, 1e-300))

    def outputs(self) -> dict[Site, Tensor]:
        """Give the true tensors of the model's own output."""
        return {site: tensor for site, tensor in self.truth.items() if not site.path}

    def _keep(self, site: Site, value: Tensor) -> None:
        self.truth[site] = wide(value)

    def _difference_into(self, errors: dict[Site, float]) -> Visitor:
        def visit(site: Site, value: Tensor) -> None:
            truth = self.truth.get(site)
            if truth is not None and truth.shape == value.shape:
                errors[site] = rms(wide(value) - truth)

        return visit

    def _check(self) -> None:
        outputs = self.outputs()
        if not outputs:
            raise ConfigurationError(
                "The model's output holds no tensor, so there is nothing to compare; allowed are "
                "a tensor and tuples, lists and dicts of tensors."
            )
        for site, tensor in outputs.items():
            _check_finite(tensor, f"The original's output{site.part}")
        if not any(self._signal.get(s, math.inf) > _NO_SIGNAL * rms(t) for s, t in outputs.items()):
            raise VerificationError(
                "The original's output does not depend on its input, so every fold would seem "
                "right. Calibrate its BatchNorm statistics, or load trained weights.",
                difference=math.nan,
                tolerance=0.0,
            )

    def _check_shapes(self, found: dict[Site, Tensor]) -> None:
        expected = {site.part: tuple(tensor.shape) for site, tensor in self.outputs().items()}
        actual = {site.part: tuple(tensor.shape) for site, tensor in found.items()}
        if expected != actual:
            raise VerificationError(
                f"The output has tensors of shapes {actual}, the original's {expected}.",
                difference=math.inf,
                tolerance=0.0,
            )
        for site, tensor in found.items():
            _check_finite(tensor, f"The output{site.part}")


def rms(tensor: Tensor) -> float:
    """Take the root of the mean square, 0 for an empty tensor."""
    return float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0


def wide(tensor: Tensor) -> Tensor:
    """Copy a tensor into float64 on the CPU."""
    return tensor.detach().to("cpu", copy=True).to(torch.float64)


def _check_finite(tensor: Tensor, name: str) -> None:
    bad = int((~torch.isfinite(wide(tensor))).sum())
    if bad:
        raise VerificationError(
            f"{name} is not finite in {bad} of {tensor.numel()} values. Check the weights and "
            "the BatchNorm statistics for NaN, infinity and overflow of the dtype.",
            difference=math.inf,
            tolerance=0.0,
        )


def _other(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make inputs of the same kind with other values: how much does the output depend on them?"""
    generator = torch.Generator().manual_seed(0)

    def other(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if not x.is_floating_point():  # Another order of the same values: still valid indices.
            return x.flatten()[torch.randperm(x.numel(), generator=generator)].view(x.shape)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        spread = float(x.double().std()) if x.numel() > 1 else 0.0
        return (noise * (spread or 1.0) + float(x.double().mean())).to(x)

    return tuple(other(x) for x in inputs)
