"""Signals as a flag that is looked at where a stop costs nothing (no torch)."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from d2nas.errors import StoppedError


@contextmanager
def signals_by_default() -> Iterator[None]:
    """Let both signals end the process at once: for waits that look at no flag."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class StopFlag:
    """Set by the first SIGINT or SIGTERM, looked at between steps; the second leaves at once."""

    signal_number: int | None = None

    def _handle(self, signal_number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise StoppedError(signal_number, "stopped at once by a second signal")
        self.signal_number = signal_number

    @contextmanager
    def installed(self) -> Iterator["StopFlag"]:
        """Handle both signals inside the ``with`` (main thread only)."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
