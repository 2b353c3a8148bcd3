"""How a command ends early: at once, cleaning up on the way, and saying how to go on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(BaseException):
    """Carries an error through Hydra, which would print the stack of an ``Exception``."""


class Terminated(SystemExit):
    """SIGTERM, as ``KeyboardInterrupt`` is Ctrl-C: every ``finally`` on the way out is run."""


class StopSignals:
    """Turn SIGTERM into an exception, and remember what stopped the process.

    What the signal leads to may be another error: a worker that was stopped at the same time is
    missed by its parent.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Raise ``Terminated`` for SIGTERM and ``KeyboardInterrupt`` for Ctrl-C in the body."""
        before = {number: signal.signal(number, self._stop) for number in _NAMES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            return  # it must not stop the cleaning up; SIGKILL still does
        self.received = signal.Signals(number)
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(self.exit_code)

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended."""
        return 128 + (self.received or 0)

    def message(self, error: BaseException) -> str:
        """Say what stopped the process, and how to go on."""
        name = _NAMES[self.received or signal.SIGINT]
        notes = [note for note in getattr(error, "__notes__", ()) if note]
        return "\n".join([f"Stopped by {name}.", *notes])


@contextlib.contextmanager
def telling(tell: Callable[[], str]) -> Iterator[None]:
    """Add to whatever ends the body how to go on; it is shown after a signal."""
    try:
        yield
    except BaseException as error:
        error.add_note(tell())
        raise
