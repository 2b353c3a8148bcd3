"""What can go wrong, as the few exceptions that the library raises on purpose.

Each message says what is wrong, the value received, what is allowed and what to do, in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str, keep: str = "") -> str:
    """Replace what could steer a terminal, in a text that names what a file says.

    Args:
        text: To be printed.
        keep: Characters that stay, as the ends of lines.
    """
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


class RepblocksError(ValueError):
    """The base of every error that this library raises on purpose."""


class ConfigurationError(RepblocksError):
    """An option, a config key or a combination of them is not allowed."""


class UnknownNameError(ConfigurationError):
    """A name is not in a registry.

    Args:
        kind: What the name was looked up as, for example ``"block"``.
        name: The name received.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = sorted(known)
        nearest = difflib.get_close_matches(name, self.known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(self.known)}.")


class NotFoldable(RepblocksError):  # noqa: N818 # the word of the field
    """A region has no equivalent kernel, or none that is exact.

    Args:
        reason: Why, as one sentence.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class VerificationError(RepblocksError):
    """A folded or exported model is not the same function as its original.

    Args:
        message: What was compared and where they part.
        difference: The largest difference found, relative to the size of the output.
        tolerance: The largest difference allowed.
        path: The first module whose output differs, if it is known.
    """

    def __init__(
        self, message: str, *, difference: float, tolerance: float, path: str | None = None
    ) -> None:
        self.difference = difference
        self.tolerance = tolerance
        self.path = path
        super().__init__(message)


class DataError(RepblocksError):
    """A data set is missing or broken."""


class NonFiniteLossError(RepblocksError):
    """Training was stopped because the loss was not finite several times in a row."""


class CheckpointError(RepblocksError):
    """A checkpoint or artifact is missing, damaged, unsafe, or of another architecture."""
