"""Signals as a flag that is looked at where a stop costs nothing."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from d2nas.errors import (
    DamagedArtifactError,
    LostRankError,
    NonFiniteError,
    StoppedError,
    StorageError,
    ValidationFailedError,
    brief_reason,
)
from d2nas.torchrun import is_torchrun

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
GRACE_SECONDS = 0.25
"""How long after a failure its reason may still come: a signal to a whole group reaches one process
after the other.
"""
STALL_SECONDS = 5.0
"""How long a step may wait for its images until a stop no longer waits for the step."""
_FOR_OTHER_REASONS = (StorageError, DamagedArtifactError, NonFiniteError, ValidationFailedError)
"""What a stop does not cause, and what its user must know of."""

_FROM_OTHERS = (LostRankError, RuntimeError, OSError, EOFError, subprocess.SubprocessError)
"""What says that another process ended."""

Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def signals_handled(handler: Handler) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP by ``handler`` inside the ``with``.

    A terminal's hang-up that is ignored (``nohup``) stays ignored. In another thread than the main
    one Python allows no handler, and signals stay the caller's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        number
        for number in STOP_SIGNALS
        if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN
    ]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@dataclass
class StopFlag:
    """Set by the first stop signal, looked at between steps; the second leaves at once.

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
        """Handle the signals inside the ``with`` (main thread only)."""
        with signals_handled(self._handle):
            yield self

    def explains(self, error: BaseException, *, wait: bool = False) -> bool:
        """Whether a stop that was asked for is why ``error`` was raised: a signal to a whole group
        ends compilers, loaders and other ranks, too, and this process meets their end.

        With ``wait`` the signal may still be on its way, where what failed is another process.
        """
        if isinstance(error, (StoppedError, *_FOR_OTHER_REASONS)):
            return False
        # torchrun ends all when one has failed: its signal is then what follows, no reason.
        if (
            wait
            and not (isinstance(error, LostRankError) and is_torchrun())
            and _from_other_process(error)
        ):
            deadline = time.monotonic() + GRACE_SECONDS
            while self.signal_number is None and time.monotonic() < deadline:
                time.sleep(0.01)
        return self.signal_number is not None

    def stop_for(
        self, error: Exception, *, wait: bool = False, where: str = "", hint: str | None = None
    ) -> StoppedError | None:
        """Return the stop to tell in place of ``error``, that happened ``where``; None where no
        stop ``explains`` it.
        """
        if not self.explains(error, wait=wait):
            return None
        assert self.signal_number is not None
        return StoppedError(
            self.signal_number, f"stopped{where} ({brief_reason(error)})", hint=hint
        )


def _from_other_process(error: BaseException | None) -> bool:
    """Whether the error, or one that it was raised for, may come from another process's end."""
    while error is not None:
        if isinstance(error, _FROM_OTHERS):
            return True
        error = error.__context__
    return False
