"""Calls of the operating system that fail, one at a time, under a whole command in this process.

Only calls about files below some folders count: how Python finds its modules is not under test.
"""

import builtins
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ABOUT_FILES = (
    *("access", "chmod", "fsync", "fstat", "link", "listdir", "lstat", "mkdir", "open", "readlink"),
    *("rename", "replace", "rmdir", "scandir", "stat", "statvfs", "truncate", "unlink", "write"),
)
"""Of ``os``; opened files and ``flock`` come on top."""

_readlink = os.readlink


class SystemCalls:
    """Counts calls from 1, and fails one, or with ``lasting`` all from there; 0 fails none."""

    def __init__(
        self, roots: tuple[Path, ...], fail_at: int = 0, number: int = 0, *, lasting: bool = False
    ) -> None:
        self.roots = tuple(map(str, roots))
        self.fail_at, self.number, self.lasting = fail_at, number, lasting
        self.log: list[str] = []

    def called(self, name: str, what: object) -> None:
        """Note a call, and fail it if it is its turn."""
        self.log.append(f"{name} {what!r}")
        late = self.lasting and len(self.log) > self.fail_at > 0
        if late or len(self.log) == self.fail_at:
            raise OSError(self.number, os.strerror(self.number), what)

    def counts(self, what: object, named: dict[str, Any]) -> bool:
        """Whether a call is about a file below one of the folders."""
        if isinstance(what, int):
            what = _path_of(what)
        elif named.get("dir_fd") is not None:
            what = _path_of(named["dir_fd"])
        try:
            return os.fsdecode(what).startswith(self.roots)  # type: ignore[arg-type]
        except TypeError:
            return False

    def watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of ``os`` that counts and fails."""

        def call(what: Any = ".", *arguments: Any, **named: Any) -> Any:
            if self.counts(what, named):
                self.called(name, what)
            return real(what, *arguments, **named)

        return call

    def opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return an ``open`` whose files count and fail when they are read or written."""

        def call(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if not self.counts(file, {}):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if not isinstance(file, int):
                self.called("open", file)
            raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            raw.calls = self
            if "+" in mode:
                data: Any = io.BufferedRandom(raw)
            else:
                data = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
            return data if "b" in mode else io.TextIOWrapper(data, encoding, errors, newline)

        return call


class _Raw(io.FileIO):
    calls: SystemCalls

    def readall(self) -> bytes:
        self.calls.called("read", self.name)
        return super().readall()

    def readinto(self, buffer: Any) -> Any:
        self.calls.called("read", self.name)
        return super().readinto(buffer)

    def write(self, data: Any) -> Any:
        self.calls.called("write", self.name)
        return super().write(data)


def _path_of(descriptor: int) -> str:
    try:
        return _readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


@contextmanager
def failing(calls: SystemCalls) -> Iterator[SystemCalls]:
    """Let these calls fail for the time of the ``with``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ABOUT_FILES:
            patch.setattr(os, name, calls.watched(name, getattr(os, name)))
        patch.setattr(fcntl, "flock", calls.watched("flock", fcntl.flock))
        patch.setattr(io, "open", calls.opened(io.open))
        patch.setattr(builtins, "open", calls.opened(builtins.open))
        yield calls
