"""Checks of what several blocks offer as options."""

from __future__ import annotations

from repblocks.errors import ConfigurationError


def check_count(name: str, value: object, least: int = 1) -> None:
    """Check that an option is a whole number and large enough.

    Raises:
        ConfigurationError: if it is not.
    """
    if type(value) is not int or value < least:
        raise ConfigurationError(f"{name} must be at least {least}, a whole number, got {value!r}.")
