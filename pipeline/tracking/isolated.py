"""A tracker in a process of its own, which a training neither waits for nor fails with.

Trackers ask a network, start threads and processes, handle signals and end with the interpreter as
they like. All of that stays in the other process; what it does not take in time is given up.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2nas.files.strict_json import canonical_json

from ..own_process import own_command, own_environment
from ..scratch import scratch_file
from . import TITLES
from .memory import refuse_links
from .sink import Row, Sink

CLOSE_SECONDS = 30.0
"""How long a command waits at its end for a tracker to take what is left."""
MAX_WAITING = 10_000
"""Calls that wait for a tracker, at most: they are in memory."""

_QUIET = {
    # Libraries' own reports to their makers, and retries that outlast every patience.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
}


class Isolated(Sink):
    """A tracker by name, started with the first stage; it warns at most once, and raises nothing
    but what a signal's handler does.
    """

    def __init__(
        self,
        name: str,
        run: str,
        folder: Path,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._title = TITLES[name]
        self.failure = f"{self._title} is not told"
        self._name, self._run, self._folder = name, run, folder
        self._say, self._warn = say, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = True
        self._calls: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING)

    def begin(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Hand on, in a process that is started where there is none."""
        if self._process is None and self._is_wanted:
            try:
                self._start()
            except OSError as error:
                self._give_up(f"{self.failure}: {error.strerror or error}")
        self._hand_on("begin", stage, facts)

    def resume(self, stage: str, rows: Sequence[Row]) -> None:
        """Hand on."""
        self._hand_on("resume", stage, rows)

    def add(self, stage: str, step: int, row: Row) -> None:
        """Hand on."""
        self._hand_on("add", stage, step, row)

    def end(self, stage: str, outcome: Mapping[str, Any]) -> None:
        """Hand on."""
        self._hand_on("end", stage, outcome)

    def close(self, status: str) -> None:
        """Hand on, and wait for the end of the process; after ``CLOSE_SECONDS`` it is killed."""
        if self._process is None:
            return
        try:
            self._hand_on("close", status)
            self._put(None)
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._give_up(f"{self._title} did not take all within {CLOSE_SECONDS:g} s")
        finally:
            self._end()
        with self._answers:
            self._listen()
        self._process = None

    def _start(self) -> None:
        folder = self._folder
        refuse_links(folder / f"{self._name}.json", 2)
        folder.mkdir(parents=True, exist_ok=True)
        self._answers = scratch_file()
        self._heard = 0
        number = self._answers.fileno()
        words = (self._name, self._run, str(folder.absolute()), str(number))
        self._process = subprocess.Popen(
            own_command(*words, module=f"{__package__}"),
            env=_QUIET | own_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[number],
            start_new_session=True,  # Ctrl-C is for the command, which then tells this process
        )
        self._writer = threading.Thread(target=self._write, args=(self._process,), daemon=True)
        self._writer.start()

    def _write(self, process: "subprocess.Popen[bytes]") -> None:
        """Write calls as fast as the process reads them, in a thread of its own."""
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: its exit code tells
            while (line := self._calls.get()) is not None:
                process.stdin.write(line)
                process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _hand_on(self, *call: Any) -> None:
        if self._process is None or not self._is_wanted:
            return
        code = self._process.poll()
        self._listen()  # which may say why it has ended
        if code not in (None, 0):
            self._give_up(f"{self.failure}: its process ended with {code}")
        if self._is_wanted:
            self._put(canonical_json(list(call)))

    def _put(self, line: bytes | None) -> None:
        try:
            self._calls.put_nowait(line)
        except queue.Full:
            self._give_up(f"{self._title} takes nothing: no more is told")
            self._kill()

    def _listen(self) -> None:
        """Show what the process has said."""
        if self._process is None:
            return
        number = self._answers.fileno()
        heard = os.pread(number, os.fstat(number).st_size - self._heard, self._heard)
        whole = heard[: heard.rfind(b"\n") + 1]
        self._heard += len(whole)
        for line in whole.splitlines():
            for kind, text in json.loads(line).items():
                if kind == "say":
                    self._say(text)
                else:
                    self._give_up(text)

    def _give_up(self, line: str) -> None:
        if self._is_wanted:
            self._is_wanted = False
            self._warn(line)

    def _kill(self) -> None:
        """End the process, with those that it has started."""
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self) -> None:
        """Leave nothing behind: no process, thread or pipe."""
        assert self._process is not None
        self._kill()
        self._process.wait()
        with contextlib.suppress(queue.Full):
            self._calls.put_nowait(None)
        self._writer.join(CLOSE_SECONDS)
