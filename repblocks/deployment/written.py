"""Write the forms of a network, load each from what was written, and compare it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from repblocks.deployment.artifact import writing
from repblocks.deployment.formats import Export, Format, Run
from repblocks.errors import VerificationError
from repblocks.folding.reference import Comparison, Reference


def write_exact(
    formats: Iterable[Format], before: nn.Module, export: Export, batches: Sequence[Tensor]
) -> dict[str, Comparison]:
    """Write each exact form, load it from its file and keep its worst comparison.

    Args:
        formats: Those that are lossy are left out; of those that nothing here runs, the file is
            checked part by part.
        before: The training form, in evaluation mode.
        export: What to write.
        batches: What the forms are compared on, unless they take something else.

    Raises:
        VerificationError: if a form is another function.
        RepblocksError: if a form cannot be written or loaded.
    """
    usual = [_reference(before, batch) for batch in batches]
    compared = {}
    for form in formats:
        run = None if form.lossy else written(form, export)
        if run is None:
            continue
        chosen = form.inputs(export, batches)
        references = usual if chosen is batches else [_reference(before, one) for one in chosen]
        found = [_compare(form, run, reference) for reference in references]
        compared[form.name] = max(found, key=lambda one: one.rms_rel / one.tolerance)
    return compared


def written(form: Format, export: Export) -> Run | None:
    """Write a form and load it from its file, or check the file of one that nothing here runs.

    Raises:
        VerificationError: if the check fails.
        ConfigurationError: if what is asked of the form is not possible.
        RepblocksError: if the form cannot be written or loaded.
    """
    with writing(form.file):
        form.write(export)
        if form.check is None:
            return form.read(export.folder, export.model)
        form.check(export)
    return None


def _reference(before: nn.Module, batch: Tensor) -> Reference:
    return Reference(before, batch, batch.dtype)


def _compare(form: Format, run: Run, reference: Reference) -> Comparison:
    """Run a written form on a reference's input.

    Raises:
        VerificationError: if it is another function.
    """
    with torch.inference_mode():
        found = reference.compare_output(run(*reference.inputs))
    if not found.passed:
        raise VerificationError(
            f"{form.file}, loaded and run on {len(reference.inputs[0])} images, differs from the "
            f"training form: RMS difference {found.rms_rel:.3g}, allowed {found.tolerance:.3g}.",
            difference=found.rms_rel,
            tolerance=found.tolerance,
        )
    return found
