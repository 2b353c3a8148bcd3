"""Write a form of a network, and load it from what was written."""

from __future__ import annotations

from repblocks.deployment.formats import Export, Format, Run
from repblocks.errors import ConfigurationError, RepblocksError


def written(form: Format, export: Export) -> Run:
    """Write a form and load it from its file, as a callable.

    Raises:
        ConfigurationError: if a package is missing.
        RepblocksError: if it cannot be written or loaded.
    """
    try:
        form.write(export)
        return form.read(export.folder, export.model)
    except ConfigurationError:
        raise
    except Exception as error:  # exporters and runtimes raise classes of their own
        raise RepblocksError(f"{form.file} could not be written: {error}") from error
