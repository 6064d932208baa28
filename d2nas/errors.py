"""Errors a user can meet: one line that says what and where, one hint, and an exit code.

Anything else that escapes is a bug (exit code 1).
"""

import errno
from collections.abc import Sequence
from typing import Any, ClassVar

_MAX_SHOWN = 120
_SYSTEM_HINTS = {
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files (sysctl fs.file-max)",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: "remove the link that leads back to itself",
    errno.ENOMEM: "free memory",
}


class D2NasError(Exception):
    """Base of every error d2nas raises on purpose.

    ``str(error)`` is one line (what, where); ``hint`` is one line (what to do), or None;
    ``details`` are the single cases, one line each, where there is more than one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, hint: str | None = None, details: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = tuple(details)


class ConfigError(D2NasError):
    """The user's call, configuration, genotype or data cannot be used as given."""

    exit_code = 2


class ValidationFailedError(D2NasError):
    """The exported model did not pass the gate before deployment."""

    exit_code = 3


class DamagedArtifactError(D2NasError):
    """A stored file is damaged, tampered with or hostile."""

    exit_code = 4


class NonFiniteError(D2NasError):
    """A loss or gradient stopped being finite; the step was not taken."""

    exit_code = 5


class OutOfMemoryError(D2NasError):
    """The device has too little memory for the configured batch."""

    exit_code = 6


class StorageError(D2NasError):
    """The operating system could not read or write (full disk, I/O error, permissions)."""

    exit_code = 7


class BusyError(D2NasError):
    """Another process holds the run or the store."""

    exit_code = 8


class LostRankError(D2NasError):
    """Another process of a parallel training is gone."""

    exit_code = 9


INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended before it could stop by itself, as shells have it."""


class StoppedError(D2NasError):
    """A signal asked for a stop; a checkpoint was written first."""

    def __init__(self, signal_number: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signal_number = signal_number

    @property
    def shell_code(self) -> int:
        """Exit code by the shell's convention: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal_number


def system_hint(error: OSError, otherwise: str) -> str:
    """Return what to do about an error of the operating system; ``otherwise`` for most."""
    return _SYSTEM_HINTS.get(error.errno or 0, otherwise)


def one_line(text: str, most: int | None = None) -> str:
    """Return ``text`` on one line, of at most ``most`` characters."""
    line = " ".join(text.split())
    return line if most is None or len(line) <= most else line[: most - 1] + "…"


def brief_reason(error: BaseException, most: int = 200) -> str:
    """Return an exception's words on one line; its type where it has none."""
    return one_line(str(error), most) or type(error).__name__


def shown_value(value: Any) -> str:
    """Return a value as a message shows it: short, on one line, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of more digits than Python writes
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
