"""The ``d2nas`` command: makes sure that ``pipeline`` is ours, then hands over to it.

Other distributions install a top-level ``pipeline`` too and overwrite files silently. So its place
is looked up before it is imported.
"""

import contextlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

from d2nas.errors import INTERRUPTED


def main() -> None:
    """Run the command line; exits with its code."""
    _end_by_signals_as_process_1()
    _restart_in_utf8_mode()
    try:
        code = _run()
    except KeyboardInterrupt:  # before the command line could tell it
        code = INTERRUPTED
    # What the command came to is decided: an interrupt while libraries are taken down is late.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(code)


def _end_by_signals_as_process_1() -> None:
    """Do what the system does not for the first process of a container, which has no default
    actions: a stop that comes while libraries load, before a command handles it, would be lost.
    """
    if os.getpid() == 1:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, lambda number, _: os._exit(128 + number))


def _restart_in_utf8_mode() -> None:
    """Start again with names of files in UTF-8 where the locale (C) has them in ASCII: a folder's
    class names would be no text. Streams keep the locale's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    encoding = next((s.encoding for s in (sys.stdout, sys.stderr) if s is not None), "ascii")
    environment = {"PYTHONIOENCODING": encoding, **os.environ, "PYTHONUTF8": "1"}
    with contextlib.suppress(OSError):  # then as it is
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _run() -> int:
    ours = Path(__file__).resolve().parent.parent / "pipeline" / "__init__.py"
    spec = importlib.util.find_spec("pipeline")
    found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
    if found != ours or not (ours.parent / "cli.py").is_file():
        return _refuse(
            f"the package 'pipeline' at {found} is not the one that belongs to d2nas",
            "another distribution installs a 'pipeline' too; install d2nas in an environment of "
            "its own",
            code=2,
        )
    from pipeline.foreign_errors import explained
    from pipeline.streams import guard_streams, hold_descriptors

    hold_descriptors()
    guard_streams()
    try:
        from pipeline.cli import run

        return run(sys.argv[1:])
    except (ImportError, OSError, MemoryError) as error:  # also where the console does not load
        told = explained(error)
        if told is None:
            raise
        return _refuse(str(told), told.hint or "", code=told.exit_code)


def _refuse(message: str, hint: str, *, code: int) -> int:
    with contextlib.suppress(OSError, AttributeError):  # stderr may be closed
        sys.stderr.write(f"error: {message}\nhint: {hint}\n")
    return code


if __name__ == "__main__":
    main()
