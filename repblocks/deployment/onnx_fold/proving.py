"""Prove that a folded ONNX file computes what the original computes, by running both files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repblocks.deployment.onnx_fold.runtime import Runtime
from repblocks.deployment.onnx_fold.translating import Translation
from repblocks.errors import VerificationError
from repblocks.folding.reference import Comparison, Reference


@dataclass(frozen=True)
class Proof:
    """Both files on one input, each against a float64 run.

    Args:
        shapes: Of the inputs.
        original: The original file.
        folded: The folded file.
    """

    shapes: tuple[tuple[int, ...], ...]
    original: Comparison
    folded: Comparison


@dataclass(frozen=True)
class Unproven:
    """An input that free sizes allow, and that the original does not take.

    Args:
        shapes: Of the inputs.
        reason: What ran it says why.
    """

    shapes: tuple[tuple[int, ...], ...]
    reason: str


def prove_all(
    translation: Translation,
    original: Runtime,
    folded: Runtime,
    examples: Iterable[Sequence[Tensor]],
) -> tuple[tuple[Proof, ...], tuple[Unproven, ...]]:
    """Compare the files on each input that the original takes.

    Raises:
        VerificationError: as for :func:`prove`.
    """
    proofs, unproven = [], []
    for inputs in examples:
        try:
            original.run(inputs, translation.outputs)
        except Exception as error:  # noqa: BLE001 # ONNX Runtime has classes of its own
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            unproven.append(Unproven(_shapes(inputs), reason))
        else:
            proofs.append(prove(translation, original, folded, inputs))
    return tuple(proofs), tuple(unproven)


def _shapes(inputs: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(x.shape) for x in inputs)


def prove(
    translation: Translation, original: Runtime, folded: Runtime, inputs: Sequence[Tensor]
) -> Proof:
    """Run both files on an input, and compare them with the graph in float64.

    The original is compared as well: if it differs by more than rounding from what was read, the
    file was read wrongly, and a folded file that agrees with that would prove nothing.

    Raises:
        VerificationError: if one of them differs by more than rounding.
    """
    reference = Reference(translation.module, tuple(inputs), translation.dtype)
    before = _compare(reference, translation, original, "The original file, run")
    after = _compare(reference, translation, folded, "The folded file, run")
    return Proof(_shapes(inputs), before, after)


def _compare(
    reference: Reference, translation: Translation, runtime: Runtime, what: str
) -> Comparison:
    output: Any = runtime.run(reference.inputs, translation.outputs)
    with torch.inference_mode():
        found = reference.compare_output(output if len(output) > 1 else output[0])
    if not found.passed:
        raise VerificationError(
            f"{what} in {runtime.name}, differs from a float64 run of the original graph: RMS "
            f"difference {found.rms_rel:.3g} of the part that depends on the input, allowed "
            f"{found.tolerance:.3g}. Nothing was written.",
            difference=found.rms_rel,
            tolerance=found.tolerance,
        )
    return found
