"""Prove that a folded model computes the function of its original, or say where they part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repblocks.errors import VerificationError
from repblocks.folding.recording import Site, evaluation_copy, run
from repblocks.folding.reference import Comparison, Reference

# The errors of one module are a smaller sample than those of the whole network.
_MODULE_ROOM = 10.0


@dataclass(frozen=True)
class Verification(Comparison):
    """The result of comparing a folded model with its original.

    Args:
        dtype: The type the folded model runs in.
        num_modules: Number of modules found in both models whose outputs were compared.
        first_difference: The first module where they part; None, as a difference raises.
    """

    dtype: str
    num_modules: int
    first_difference: str | None = None


def verify(
    model: nn.Module, folded: nn.Module, example_input: Any, *, tolerance: float | None = None
) -> Verification:
    """Compare a folded model with a float64 run of its original, both in evaluation mode.

    The output decides. A module that has folded itself (same class, other children) must agree
    on its own as well, because a later layer may hide what it lost. Copies are run: both models,
    their modes and the global random state stay as they are.

    Args:
        model: The original.
        folded: What is said to be the same function.
        example_input: A tensor, or a tuple of the models' positional arguments.
        tolerance: Largest RMS difference relative to the part of the output that depends on the
            input. By default what rounding explains: in float32 twice the original's own error.

    Raises:
        VerificationError: if they differ by more, or an output is not finite.
        ConfigurationError: if the output holds no tensor, or the dtype has no tolerance.
    """
    reference = Reference(model, example_input, _dtype(folded, example_input))
    agreement, output = _run_folded(reference, folded)
    blocks = _self_folded(model, folded)
    first = _first_difference(agreement, blocks)
    try:
        overall = reference.compare_output(output, tolerance)
    except VerificationError as error:
        raise _relocated(error, first) from error
    if not overall.passed:
        raise _failure(
            f"The folded model differs from its original ({reference.dtype}): RMS difference",
            overall,
            first,
        )
    for site, comparison in agreement.items():
        if site.path in blocks and not _agrees(comparison):
            raise _failure(
                "The output agrees, but a block differs from its original: RMS difference",
                comparison,
                site.path,
            )
    return Verification(
        **asdict(overall),
        dtype=str(reference.dtype).removeprefix("torch."),
        num_modules=len({site.path for site in agreement}),
    )


def _dtype(folded: nn.Module, example_input: Any) -> torch.dtype:
    """Find the type the folded model runs in: that of its weights, without any of its input."""
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    tensors = [*folded.parameters(), *(x for x in inputs if isinstance(x, Tensor))]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


def _run_folded(reference: Reference, folded: nn.Module) -> tuple[dict[Site, Comparison], Any]:
    """Run the folded model; compare each module with the original's, and return the output."""
    compared: dict[Site, Comparison] = {}

    def visit(site: Site, value: Tensor) -> None:
        known = reference.truth.get(site)
        if site.path and known is not None and known.shape == value.shape:
            compared[site] = reference.compare(site, value)

    output = run(evaluation_copy(folded), reference.inputs, visit)
    return compared, output


def _agrees(comparison: Comparison) -> bool:
    return comparison.rms_rel <= _MODULE_ROOM * comparison.tolerance


def _self_folded(model: nn.Module, folded: nn.Module) -> set[str]:
    """Find the modules that kept path and class but not their children: folded blocks."""
    after = dict(folded.named_modules())
    common = [(path, m, after[path]) for path, m in model.named_modules() if path in after]
    return {
        path
        for path, old, new in common
        if path and type(old) is type(new) and not isinstance(old, nn.Sequential)
        if {name for name, _ in old.named_children()} != {name for name, _ in new.named_children()}
    }


def _first_difference(compared: dict[Site, Comparison], blocks: set[str]) -> str | None:
    """Name where the models part for good, as the folded block or else as the module.

    Inside a folded region modules may differ and meet again (a convolution that has taken in
    the BatchNorm after it), so only what follows the last agreement counts.
    """
    sites = list(compared)
    agreeing = [index for index, site in enumerate(sites) if _agrees(compared[site])]
    after = sites[agreeing[-1] + 1 if agreeing else 0 :]
    if not after:
        return None
    path = after[0].path
    names = path.split(".")
    prefixes = (".".join(names[:length]) for length in range(1, len(names) + 1))
    return next((prefix for prefix in prefixes if prefix in blocks), path)


def _relocated(error: VerificationError, first: str | None) -> VerificationError:
    return VerificationError(
        f"{error}{_at(first)}", difference=error.difference, tolerance=error.tolerance, path=first
    )


def _failure(what: str, found: Comparison, first: str | None) -> VerificationError:
    return VerificationError(
        f"{what} {found.rms_rel:.3g} of the part that depends on the input, allowed "
        f"{found.tolerance:.3g} (the original's own rounding: {found.own_rms_rel:.3g}); largest "
        f"difference {found.max_abs:.3g}.{_at(first)}",
        difference=found.rms_rel,
        tolerance=found.tolerance,
        path=first,
    )


def _at(first: str | None) -> str:
    return f" The first module that differs is '{first}'." if first else ""
