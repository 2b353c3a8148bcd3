"""Checks of the options of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from repblocks.errors import ConfigurationError


def check_flag(name: str, value: bool) -> None:
    """Check that an option is true or false.

    Raises:
        ConfigurationError: if it is anything else.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be true or false, got {value!r}.")


def check_count(name: str, value: int, least: int = 1, reason: str = "") -> None:
    """Check that an option is a whole number, and large enough.

    Raises:
        ConfigurationError: if it is not.
    """
    if type(value) is not int or value < least:
        raise ConfigurationError(
            f"{name} must be a whole number of at least {least}{reason}, got {value!r}."
        )


def check_factor(name: str, value: float) -> None:
    """Check that an option is a number above 0.

    Raises:
        ConfigurationError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigurationError(f"{name} must be a number above 0, got {value!r}.")


def check_share(name: str, value: float) -> None:
    """Check that an option is a number above 0, and at most 1.

    Raises:
        ConfigurationError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigurationError(f"{name} must be a number above 0 and at most 1, got {value!r}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that an option is one of a few words.

    Raises:
        ConfigurationError: if it is not.
    """
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def check_kernel_sizes(values: Sequence[int], count: int) -> None:
    """Check that an option is a list of so many odd numbers of taps.

    Raises:
        ConfigurationError: if it is anything else.
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or len(values) != count or any(type(v) is not int or v % 2 != 1 for v in values):
        raise ConfigurationError(
            f"kernel_sizes must be {count} odd whole numbers of at least 1, got {values!r}."
        )
