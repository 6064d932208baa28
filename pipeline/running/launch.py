"""Starts the processes of a parallel training on one machine, and ends them together.

They find each other by the variables that torchrun sets, so that the same command also runs under
``torchrun`` on several machines.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from d2nas.cpus import usable_cpus
from d2nas.errors import LostRankError, StoppedError
from d2nas.torchrun import AGAIN

from ..own_process import own_command, own_environment
from ..scratch import scratch_file
from .signals import signals_handled

GRACE_SECONDS = 15.0
"""How long the other ranks may take to end on their own once one has failed."""
KILL_SECONDS = 5.0
_POLL_SECONDS = 0.1
_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG

LAST_WORDS = "D2NAS_LAST_WORDS"
"""Variable with the number of the open file that a rank's launcher reads."""
OWN_STDERR = "D2NAS_STDERR"
"""Variable with the number of the launcher's stderr, for a rank whose own is a file."""


def exit_without_message(error: LostRankError) -> None:
    """End this process with the error's code, where a launcher tells it: the launcher knows better
    which rank ended and why. Returns where there is none.
    """
    number = os.environ.get(LAST_WORDS, "")
    if number.isdecimal():
        os.write(int(number), f"{error}\n{error.hint or ''}\n".encode())
        raise SystemExit(error.exit_code)


def say_at_once(line: str) -> None:
    """Show a line of a rank other than 0, also where a launcher keeps what it says."""
    number = os.environ.get(OWN_STDERR, "")
    if not number.isdecimal():
        sys.stderr.write(f"{line}\n")
        return
    with contextlib.suppress(OSError):  # who listens decides nothing
        os.write(int(number), f"{line}\n".encode())


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run ``d2nas ARGUMENTS`` in ``count`` processes; returns the exit code.

    Signals are passed on. Where a process fails the others are ended too, and its code is
    returned. Raises ``LostRankError`` for one that was killed, and where they lost each other.
    """
    with contextlib.ExitStack() as files:
        logs = [files.enter_context(scratch_file()) for _ in range(count)]
        code, rank = _run(_start(count, arguments, logs))
        logs[rank].seek(0)
        words = logs[rank].read().decode(errors="replace")
    if rank > 0:
        sys.stderr.write(words)
    elif code == LostRankError.exit_code and words:
        message, hint = words.splitlines()[:2]
        raise LostRankError(message, hint=hint or None)
    return code


def _start(
    count: int, arguments: Sequence[str], logs: Sequence[IO[bytes]]
) -> list[subprocess.Popen[bytes]]:
    port = _free_port()
    children = []
    with contextlib.ExitStack() as files:
        loud = files.enter_context(_own_stderr())
        for rank in range(count):
            # Rank 0 speaks for all, but not of a rank that is gone: this process knows which, and
            # why. What another one says is shown if it alone has failed; at once if it waits.
            name, file = (LAST_WORDS, logs[0]) if rank == 0 else (OWN_STDERR, loud)
            children.append(
                subprocess.Popen(
                    own_command(*arguments),
                    env=_environment(rank, count, port) | {name: str(file.fileno())},
                    pass_fds=[file.fileno()],
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    stderr=None if rank == 0 else logs[rank],
                    # Ctrl-C reaches a whole process group: they would get it twice.
                    start_new_session=True,
                    preexec_fn=_end_with_the_parent if sys.platform == "linux" else None,
                )
            )
    return children


def _own_stderr() -> IO[bytes]:
    """Return this process's stderr under another number; where it is closed, nowhere."""
    try:
        return os.fdopen(os.dup(2), "wb", buffering=0)
    except OSError:
        return open(os.devnull, "wb", buffering=0)


def _run(children: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Wait for all, passing signals on; returns the code, and the rank whose words explain it."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        passed.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    passed: list[int] = []
    with signals_handled(pass_on):
        try:
            failed = _wait(children)
        finally:
            _end(children)
    codes = {children[rank].returncode for rank in failed}
    if passed and codes & {-passed[0], LostRankError.exit_code}:
        # The user's signal, no lost rank: it met one that could not save yet, or had ended already,
        # and others lost that one.
        if children[0].returncode == 128 + passed[0]:
            return children[0].returncode, 0
        raise StoppedError(passed[0], "stopped before training began")
    return _outcome(children, failed)


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    threads = str(max(1, usable_cpus() // count))
    return {
        "OMP_NUM_THREADS": threads,
        **own_environment(),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _end_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait until all have ended, or some time after one failed; returns ranks as they failed."""
    failed: list[int] = []
    deadline = float("inf")
    while time.monotonic() < deadline:
        codes = [child.poll() for child in children]
        for rank, code in enumerate(codes):
            if code not in (None, 0) and rank not in failed:
                failed.append(rank)
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if None not in codes:
            break
        time.sleep(_POLL_SECONDS)
    return failed


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + KILL_SECONDS
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _outcome(children: Sequence[subprocess.Popen[bytes]], failed: Sequence[int]) -> tuple[int, int]:
    """Return the code and number of the rank that failed first for a reason of its own.

    Where rank 0 failed for the same reason, that is rank 0: it has told it.
    """
    for rank in failed:
        code = children[rank].returncode
        if code < 0:
            raise LostRankError(
                f"rank {rank} of {len(children)} was killed by {signal.Signals(-code).name}",
                hint=AGAIN,
            )
    codes = {rank: children[rank].returncode for rank in failed}
    own = [rank for rank in failed if codes[rank] != LostRankError.exit_code] or [*failed, 0]
    code = codes.get(own[0], 0)
    return code, 0 if codes.get(0) == code else own[0]
