"""What an extra of this package brings, and whether it is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution, requires

from packaging.requirements import Requirement

_PACKAGE = "repblocks"


def packages_of(extra: str) -> list[str]:
    """Name the packages of an extra on this system, as the package's own metadata lists them."""
    wanted = [Requirement(text) for text in requires(_PACKAGE) or ()]
    return [one.name for one in wanted if one.marker and _is_of(one, extra)]


def missing(extra: str) -> str:
    """Say which packages of an extra are not installed, and what brings them; empty if all are."""
    absent = [name for name in packages_of(extra) if not _is_installed(name)]
    if not absent:
        return ""
    return (
        f"needs {', '.join(absent)}, which is not installed. Install it with: "
        f"pip install {_PACKAGE}[{extra}], or in a checkout: uv sync --extra {extra}."
    )


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return bool(marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
