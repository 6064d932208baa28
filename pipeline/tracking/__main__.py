"""The process that tells one tracker: ``python -m pipeline.tracking NAME RUN FOLDER NUMBER``.

It reads calls of a ``Sink`` from stdin, a line of JSON each, and answers with lines for the user in
the open file of that NUMBER. Whatever it fails at ends it alone.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..credentials import reason_without_credentials
from .memory import Memory
from .mlflow_tracker import MlflowTracker
from .tracker import Tracker
from .wandb_tracker import WandbTracker

TRACKERS: dict[str, type[Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}
ORPHAN_SECONDS = 30.0
"""How long a process whose command was killed may go on telling."""


def main(name: str, run: str, folder: str, number: str) -> int:
    """Tell a tracker all that comes; return the exit code."""

    def answer(kind: str, line: str) -> None:
        os.write(int(number), f"{json.dumps({kind: line})}\n".encode())

    kind = TRACKERS[name]
    memory = Memory(Path(folder) / f"{name}.json")
    try:
        with memory.held():
            tracker = kind(run, Path(folder), memory, lambda line: answer("say", line))
            for call, values in _calls():
                getattr(tracker, call)(*values)
    except Exception as error:  # noqa: BLE001 - another library's, of which nothing is needed
        answer("warn", f"{kind.title}: no more is logged: {reason_without_credentials(error)}")
        return 1
    return 0


def _calls() -> Iterator[tuple[str, list[Any]]]:
    """Yield what to call, with values; the last is ``close``, also where the command was killed."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    given = os.fdopen(os.dup(0), "rb")  # a tracker's own processes do not inherit this one
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def read() -> None:
        for line in given:
            lines.put(line)
        lines.put(b"")
        timer = threading.Timer(ORPHAN_SECONDS, _end_all)
        timer.daemon = True
        timer.start()

    threading.Thread(target=read, daemon=True).start()
    while line := lines.get():
        call, *values = json.loads(line)
        yield call, values
        if call == "close":
            return
    yield "close", ["stopped"]


def _end_all() -> None:
    """End this process and, where it leads a group of its own, those that it has started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
