"""Child processes for the tests of the store: they hold, commit, and are killed.

Imports neither torch nor pytest, because they must start fast, and fork cheaply:
``python tests/store_children.py MODE STORE ...``.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from faults import PROJECT, careless_commit, commit, contents, named_ids, raw_files
from store_bugs import BUGS

from d2nas.errors import DamagedArtifactError, StorageError
from d2nas.files.verified_folder import MANIFEST_NAME, read_verified
from pipeline.store import FileSystem, Store

KILL_BYTES = 100_000
"""Half of what a child commits again and again until it is killed."""


def start(mode: str, *arguments: object, script: str = __file__) -> subprocess.Popen[str]:
    """Start a script as another process and return it; its output is lines of text."""
    command = [sys.executable, script, mode, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=PROJECT, env=environment
    )


def run_to_end(mode: str, *arguments: object, script: str = __file__) -> list[str]:
    """Run a script as another process; returns the lines it wrote."""
    process = start(mode, *arguments, script=script)
    output, _ = process.communicate(timeout=600)  # against a hang, no limit of speed
    assert process.returncode == 0, output
    return output.splitlines()


@contextmanager
def holder(mode: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has done its part when this yields it, and end it afterwards."""
    process = start(mode, *arguments)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def hold_run(root: Path, run: str) -> None:
    with Store(root).lock_run(run):
        _say("ready")
        signal.pause()


def hold_staging(root: Path) -> None:
    with Store(root).stage() as staging:
        staging.write("weights.bin", b"unfinished")
        _say("ready")
        signal.pause()


def commit_many(root: Path, first_seed: str, count: str) -> None:
    store = Store(root)
    for seed in range(int(first_seed), int(first_seed) + int(count)):
        _say(commit(store, contents(seed)).reference or "")


def commit_from_many(root: Path, count: str, *first_seeds: str) -> None:
    """Let a forked child of its own commit from each seed on; their lines are whole."""
    children = [_forked(commit_many, root, seed, count) for seed in first_seeds]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * len(children), codes


def _forked(work: Callable[..., None], *arguments: Any) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    return child


class DiskLikeFileSystem(FileSystem):
    """Takes its time to sync, as disks do, also in memory: most kills meet it writing."""

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        if kind.startswith("sync"):
            time.sleep(0.001)
        super()._operation(kind, path, action)


class SlowFileSystem(FileSystem):
    """Waits where a version is in its place and has no name yet: time for others to come by."""

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        if kind == "link":
            time.sleep(0.01)
        super()._operation(kind, path, action)


def commit_slowly(root: Path, bug: str, first_seed: str, count: str) -> None:
    """Commit with one of the bugs of ``store_bugs``, or none; say what became of each."""
    BUGS[bug]()
    store = Store(root, SlowFileSystem())
    for seed in range(int(first_seed), int(first_seed) + int(count)):
        try:
            _say(commit(store, contents(seed)).reference or "")
        except StorageError:
            _say("failed")


def collect_until(root: Path, bug: str, end: str) -> None:
    """Remove garbage until there is a file ``end``; say how often it was done."""
    BUGS[bug]()
    num_passes = 0
    while not Path(end).exists():
        try:
            Store(root).collect_garbage()
        except (DamagedArtifactError, StorageError):
            if bug == "none":
                raise
        num_passes += 1
        if num_passes == 1:
            _say("ready")
        time.sleep(0.002)  # others wait for the lock longer than it is free
    _say(str(num_passes))


def commit_with_limits(root: Path, in_place: Path, *limits: str) -> None:
    """Commit, and write a file in its place, while no file may be larger; say what went wrong.

    A limit is ``FILE:NOTE:LIMIT``: the size of the version's files and of the note, and the limit.
    """
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for seed, words in enumerate(limits, start=100):
        size, note, limit = map(int, words.split(":"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            commit(Store(root), contents(seed, size=size), note={"filling": "x" * note})
        except StorageError as error:
            _say(str(error))
        with suppress(OSError):
            Path(in_place).write_bytes(bytes(300_000))


# Kills


@contextmanager
def _killed_child(work: Callable[[int], Any], delay: float) -> Iterator[str]:
    """Fork, let the child work, and kill it after its first word; gives all that it said.

    ``delay`` is how long after, in parts of the time that the first word took.
    """
    reader, sink = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            work(sink)
        finally:
            os._exit(1)  # only a bug leads here: the parent kills
    os.close(sink)
    with os.fdopen(reader, "rb") as file:
        first = file.read(1)
        assert first, "the child failed"
        time.sleep(delay * (time.monotonic() - began))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        yield (first + file.read()).decode()


def kill_rounds(root: Path, writer: str, seed: str, rounds: str) -> None:
    """Kill committing children at random moments; say how many are acknowledged, broken, lost.

    One process forks all children, so that a round costs a fork and not a start of Python.
    """
    draw = random.Random(int(seed))
    acknowledged: dict[str, int] = {}
    for number in range(int(rounds)):

        def work(sink: int, number: int = number) -> None:
            _commit_until_killed(root, writer, number, sink)

        with _killed_child(work, draw.random() * 1.2) as said:
            pairs = [line.split() for line in said.splitlines() if line.endswith(".")]
            acknowledged |= {version_id: int(seed) for version_id, seed, _ in pairs}
    num_lost = _num_lost(root, acknowledged) if writer == "store" else 0
    _say(f"{len(acknowledged)} {_num_broken(root)} {num_lost}")


def killed_contents(seed: int, num_files: int = 2) -> dict[str, bytes]:
    """Return files that are made in no time, so that kills hit the writing."""
    text = f"version {seed}\n".encode()
    return {f"{n}.bin": text * (2 * KILL_BYTES // num_files // len(text)) for n in range(num_files)}


def _commit_until_killed(root: Path, writer: str, number: int, sink: int) -> None:
    store = Store(root)
    for seed in range(10_000 * number, 10_000 * (number + 1)):
        if writer == "store":
            version_id = commit(store, killed_contents(seed), run=f"run-{number // 10}").id
        else:
            files = killed_contents(seed, num_files=10)
            version_id = careless_commit(store, DiskLikeFileSystem(), files).name
        os.write(sink, f"{version_id} {seed} .\n".encode())


def _num_broken(root: Path) -> int:
    num_broken = 0
    for folder in (root / "versions").glob("*"):
        try:
            read_verified(folder)
        except DamagedArtifactError:
            num_broken += 1
    return num_broken


def _num_lost(root: Path, acknowledged: dict[str, int]) -> int:
    """Count what was acknowledged and has no name or other content, and names of nothing."""
    named = named_ids(root)
    num_lost = sum(not (root / "versions" / version_id).is_dir() for version_id in named)
    for version_id, seed in acknowledged.items():
        files = raw_files(root / "versions" / version_id)
        files.pop(MANIFEST_NAME, None)
        num_lost += version_id not in named or files != killed_contents(seed)
    return num_lost


def kill_lock_holders(root: Path, rounds: str) -> None:
    """Kill holders of a run's lock; say how often it was free at once, and a pid file's too."""
    store, pid_file = Store(root), root.parent / "run.pid"
    num_free = num_pid_file_free = 0
    for _ in range(int(rounds)):

        def hold(sink: int) -> None:
            with store.lock_run("quickstart"), pid_file.open("x"):
                os.write(sink, b"x")
                signal.pause()

        with _killed_child(hold, 0.0):
            with store.lock_run("quickstart"):
                num_free += 1
            num_pid_file_free += not pid_file.exists()
            pid_file.unlink(missing_ok=True)
    _say(f"{num_free} {num_pid_file_free}")


MODES: dict[str, Callable[..., None]] = {
    "hold-run": hold_run,
    "hold-staging": hold_staging,
    "commit": commit_from_many,
    "commit-slowly": commit_slowly,
    "collect": collect_until,
    "limits": commit_with_limits,
    "kill": kill_rounds,
    "kill-lock-holders": kill_lock_holders,
}

if __name__ == "__main__":
    mode, root, *rest = sys.argv[1:]
    MODES[mode](Path(root), *rest)
