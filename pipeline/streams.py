"""Standard streams that never raise: what listens to a command does not decide what it computes.

A pipe whose reader has left, a terminal that hung up, a log on a full disk, a closed descriptor:
whatever writes to stderr or stdout (rich, typer, warnings, logging, other libraries) does not
notice. What was to be given on stdout and was lost is kept as an error, for the end of the command.
"""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO, cast

is_quiet = False
"""Whether messages are left out; warnings, errors and results are not."""


class _Writer(io.RawIOBase):
    """Writes to ``target``, and keeps the error where that fails; None is a closed descriptor."""

    def __init__(self, target: BinaryIO | None, *, is_whole: bool) -> None:
        super().__init__()
        self._target, self._is_whole = target, is_whole
        self.error: OSError | None = None
        """Why the last that was lost was lost."""

    def writable(self) -> bool:
        """Whether it can be written to, which is always pretended."""
        return True

    def fileno(self) -> int:
        """Return the descriptor. Raises ``OSError`` where there is none."""
        if self._target is None:
            raise io.UnsupportedOperation("the descriptor is closed")
        return self._target.fileno()

    def isatty(self) -> bool:
        """Whether a person may be looking."""
        try:
            return self._target is not None and self._target.isatty()
        except (OSError, ValueError):
            return False

    def write(self, data: Any) -> int:
        """Write all of ``data``, or keep why not; returns its length in either case."""
        view = memoryview(data).cast("B")
        # Of data that has lost a part, nothing more: what follows a hole would be misread.
        if self.error is None or not self._is_whole:
            try:
                self._write(view)
            except OSError as error:
                self.error = error
            except ValueError as error:  # a file object that was closed
                self.error = OSError(errno.EBADF, str(error))
        return len(view)

    def _write(self, left: memoryview) -> None:
        if self._target is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        while left:
            try:
                written = self._target.write(left)
            except BlockingIOError:
                written = None
            if written is None:  # not blocking, and full
                select.select([], [self._target], [])
            else:
                left = left[written:]
        self._target.flush()


class _Stream(io.TextIOWrapper):
    """Text over a ``_Writer``. What the encoding lacks is written as a backslash escape."""

    def __init__(self, stream: TextIO | None, *, is_whole: bool) -> None:
        # Below every buffer: bytes that failed would stay in it, and fail again at exit.
        buffer = getattr(stream, "buffer", None)
        self.writer = _Writer(getattr(buffer, "raw", buffer), is_whole=is_whole)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        super().__init__(
            # A raw file that takes all it is given is all that a buffer asks of one.
            io.BufferedWriter(self.writer),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=not is_whole or self.writer.isatty(),
        )


def hold_descriptors() -> None:
    """Open what is closed of the descriptors 0, 1 and 2: else the next files that are opened get
    these numbers, and what libraries say goes into them.

    Output can still not be written where it was closed: a child process finds an error, too.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:  # pragma: no cover - the lowest free number is given
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Make stdout and stderr streams that never raise, for the time of the ``with``.

    Inside another one, and where a stream has no bytes below it (a ``StringIO``), nothing changes.
    """
    before = sys.stdout, sys.stderr
    guard_streams()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for stream, earlier in ((sys.stdout, before[0]), (sys.stderr, before[1])):
            if isinstance(stream, _Stream) and stream is not earlier:
                stream.detach()  # or closing it would close what lies below
        sys.stdout, sys.stderr = before


def guard_streams() -> None:
    """Make stdout and stderr streams that never raise, until the process ends: its last flush, too,
    would change the exit code.
    """
    if _can_be_guarded(sys.stdout):
        sys.stdout = _Stream(sys.stdout, is_whole=True)
    if _can_be_guarded(sys.stderr):
        sys.stderr = _Stream(sys.stderr, is_whole=False)


def _can_be_guarded(stream: TextIO | None) -> bool:
    return stream is None or (not isinstance(stream, _Stream) and hasattr(stream, "buffer"))


@contextlib.contextmanager
def optional_output() -> Iterator[None]:
    """Take output inside of the ``with`` for messages: to lose it is no error."""
    stream = cast("TextIO", sys.stdout)
    stream.flush()
    writer = stream.writer if isinstance(stream, _Stream) else None
    before = None if writer is None else writer.error
    yield
    stream.flush()
    if writer is not None:
        writer.error = before


def lost_output() -> OSError | None:
    """Return why what was to be given on stdout is not there; None where it is, or where its reader
    has left and misses nothing (``d2nas ls | head``).
    """
    stream = sys.stdout
    if not isinstance(stream, _Stream):
        return None
    stream.flush()
    error = stream.writer.error
    return None if isinstance(error, ConnectionError) else error


def output_has_ended() -> bool:
    """Hand on what is buffered, and tell whether nothing more arrives: the reader of stdout has
    left, or a part was lost.
    """
    stream = cast("TextIO", sys.stdout)
    stream.flush()
    return isinstance(stream, _Stream) and stream.writer.error is not None
