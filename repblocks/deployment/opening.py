"""Open a written form of an artifact, as long as that runs no code that nobody vouched for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from repblocks.deployment.formats import Format, get_format, list_formats
from repblocks.deployment.formats._registry import Run
from repblocks.deployment.load import CONFIG_FILE, WEIGHTS_FILE, is_rebuildable
from repblocks.deployment.manifest import check_files
from repblocks.errors import CheckpointError, ConfigurationError, RepblocksError


def forms_in(folder: Path) -> list[Format]:
    """List the forms whose files are there, the best to run first.

    Those that hold code come last and quantized ones before them; otherwise it is the order in
    which the formats are registered.
    """
    found = [form for form in map(get_format, list_formats()) if (folder / form.file).exists()]
    return sorted(found, key=lambda form: (form.executable, form.lossy))


@dataclass(frozen=True, eq=False)
class Opened:
    """A form that is ready to run.

    Args:
        name: Of its format.
        run: What the format opened.
    """

    name: str
    run: Run

    def __call__(self, images: Tensor) -> Tensor:
        """Run normalised images ``(N, C, H, W)``; gives scores ``(N, num_classes)``.

        Raises:
            CheckpointError: if the form fails, or gives values that are not finite.
        """
        try:
            with torch.inference_mode():
                scores = self.run(images)
        except Exception as error:  # runtimes raise classes of their own
            raise CheckpointError(
                f"The form {self.name} does not run: {_first_line(error)}"
            ) from error
        if not scores.isfinite().all():
            raise CheckpointError(f"The form {self.name} gives values that are not finite.")
        return scores


def open_form(folder: Path, form: Format, *, trust: bool = False) -> Opened:
    """Open one form.

    Args:
        folder: The artifact.
        form: One that is there.
        trust: Whether a file with code in it may run.

    Raises:
        ConfigurationError: if the form holds code and is not trusted, or its package is not
            installed.
        CheckpointError: if its files are not those that were written, are damaged, or the network
            cannot be rebuilt from them.
    """
    if form.executable and not trust:
        raise ConfigurationError(
            f"{folder / form.file} holds code, which runs when it is opened. If you "
            "trust whoever wrote it, give trust=true (repblocks-predict: --trust); otherwise take "
            "another form."
        )
    check_files(folder, CONFIG_FILE, form=form)
    if form.file == WEIGHTS_FILE and not is_rebuildable(folder):
        raise CheckpointError(
            f"{folder / form.file} holds weights alone, of a network without a registered name. "
            "Take another form."
        )
    try:
        return Opened(form.name, form.read(folder, nn.Identity()))
    except RepblocksError:
        raise
    except ImportError as error:
        wanted = f'"repblocks[{form.extra}]"' if form.extra else error.name
        raise ConfigurationError(
            f"{form.file} needs the package {error.name}, which is not installed. "
            f"Install it with: pip install {wanted}."
        ) from error
    except Exception as error:  # runtimes raise classes of their own
        raise CheckpointError(
            f"{folder / form.file} cannot be opened: {_first_line(error)}"
        ) from error


def open_best(folder: Path, *, trust: bool = False) -> Opened:
    """Open the first form that can run here: its package is there, and it holds no code.

    Raises:
        ConfigurationError: if there is none, saying why not for each.
        CheckpointError: if the first that could run is damaged.
    """
    reasons = []
    for form in forms_in(folder):
        if form.file == WEIGHTS_FILE and not is_rebuildable(folder):
            reasons.append(f"{form.file} holds weights alone, of a network without a name")
            continue
        try:
            return open_form(folder, form, trust=trust)
        except ConfigurationError as error:
            reasons.append(str(error))
    why = " ".join(reasons) or f"Known forms: {', '.join(list_formats())}."
    raise ConfigurationError(f"{folder} holds no form that can be run here. {why}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
