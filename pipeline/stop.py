"""Signals as a flag that is looked at where a stop costs nothing (no torch)."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from d2nas.errors import StoppedError

Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def signals_handled(handler: Handler) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by ``handler`` inside the ``with`` (main thread only)."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@dataclass
class StopFlag:
    """Set by the first SIGINT or SIGTERM, looked at between steps; the second leaves at once.

    The number may also come from another rank of a parallel training (``agree``). This process's
    own signal, which then still is to come, is no second one.
    """

    signal_number: int | None = None
    _has_come: bool = field(default=False, init=False)

    def _handle(self, signal_number: int, _frame: FrameType | None) -> None:
        if self._has_come:
            raise StoppedError(signal_number, "stopped at once by a second signal")
        self._has_come = True
        self.signal_number = signal_number

    @contextmanager
    def installed(self) -> Iterator["StopFlag"]:
        """Handle both signals inside the ``with`` (main thread only)."""
        with signals_handled(self._handle):
            yield self
