"""Workers that read images: independent of /dev/shm, and what fails in one is told, not waited for.

What is replaced in this process before the workers are forked is replaced in them too.
"""

import errno
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_files import write_classes
from streaming import BATCH, SIZE, digest, no_workers_of_other_tests, stream  # noqa: F401

from d2nas.data import workers as image_workers
from d2nas.data.batches import _Decoder
from d2nas.errors import D2NasError, OutOfMemoryError, StoppedError, StorageError
from pipeline.running.runner import _StageHooks
from pipeline.running.signals import STALL_SECONDS, StopFlag

TINY_BYTES = 64 * 1024
"""Room in /dev/shm; a batch has 360 KiB."""

CHILD = """
import hashlib, os, sys
from pathlib import Path
sys.path[:0] = [str(Path.cwd() / "tests/support")]
from streaming import stream, digest
batches = stream(Path(sys.argv[1]), workers=2)
print(*(digest(batches, step) for step in range(6)))
room = os.statvfs("/dev/shm")
print(room.f_bavail * room.f_frsize)
import multiprocessing, torch
for control in (multiprocessing.Lock, lambda: open("/dev/shm/file", "wb")):
    try:
        control()
        print("made")
    except OSError as error:
        print(error.errno)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images", {"cat": 20, "dog": 25})


def the_worker() -> int:
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    return child.pid


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_a_read_only_shared_memory_smaller_than_a_batch_changes_nothing(folder: Path) -> None:
    mount = f"mount -t tmpfs -o ro,size={TINY_BYTES} tmpfs /dev/shm"
    enter = ["unshare", "-m", "sh", "-c"]
    if subprocess.run([*enter, mount], capture_output=True, check=False).returncode:
        pytest.skip("mounting in a namespace of its own is not permitted here")
    command = [sys.executable, "-c", CHILD, str(folder)]
    ended = subprocess.run(
        [*enter, f'{mount} && exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    digests, room, lock, file = ended.stdout.splitlines()
    here = stream(folder, workers=0)
    assert digests.split() == [digest(here, step) for step in range(6)]
    # Control: nothing else that goes through /dev/shm works there.
    assert int(room) <= TINY_BYTES < BATCH * 3 * SIZE * SIZE
    assert [int(lock), int(file)] == [errno.EROFS] * 2


def test_no_shared_memory_with_a_name_and_no_semaphore_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    for name in ("_share_fd_cpu_", "_share_filename_cpu_"):
        monkeypatch.setattr(torch.UntypedStorage, name, refuse)
    batches, here = stream(folder, workers=2), stream(folder, workers=0)
    assert [digest(batches, s) for s in range(10)] == [digest(here, s) for s in range(10)]
    # Control: what PyTorch's loader hands tensors over with needs them.
    for control in (multiprocessing.Queue, torch.zeros(4).share_memory_):
        with pytest.raises(OSError, match="No space"):
            control()


def test_workers_that_cannot_be_started_are_an_error_with_its_hint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = stream(folder, workers=8)
    digest(stream(folder, workers=0), 0)  # all that is loaded late is loaded
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(limits[0]) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[6], limits[1]))
    try:
        with pytest.raises(OutOfMemoryError, match="cannot be started: Too many open") as caught:
            batches.batch(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.exit_code == 6
    assert "data.workers, 0 uses none" in str(caught.value.hint)
    assert "ulimit -n" in str(caught.value.hint)
    assert not multiprocessing.active_children()  # those that had been started

    def no_memory(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", no_memory)
        with pytest.raises(OutOfMemoryError, match="cannot be started: Cannot allocate memory"):
            batches.batch(0)
    batches.batch(0)  # control: without the limits, the same stream


def fail(action: Callable[[], object]) -> Callable[..., None]:
    def decode(*_: object) -> None:
        action()

    return decode


def failing(error: BaseException) -> Callable[..., None]:
    def decode(*_: object) -> None:
        raise error

    return decode


@pytest.mark.parametrize(
    ("decode", "kind", "told"),
    [
        (failing(MemoryError()), OutOfMemoryError, "no memory for decoding"),
        (failing(OSError(errno.EIO, "Input/output error")), StorageError, "Input/output error"),
        (failing(D2NasError("x", hint="y")), D2NasError, "x"),
        (failing(ZeroDivisionError("a bug")), RuntimeError, "Traceback.*ZeroDivisionError: a bug"),
        (fail(lambda: os._exit(3)), OutOfMemoryError, "images ended: exit code 3"),
        (fail(lambda: os.kill(os.getpid(), 9)), OutOfMemoryError, "ended: killed by SIGKILL"),
    ],
)  # fmt: skip
def test_what_fails_in_a_worker_is_told_once_and_the_next_call_starts_anew(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    decode: Callable[..., None],
    kind: type[Exception],
    told: str,
) -> None:
    batches = stream(folder, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(_Decoder, "__call__", decode)
        with pytest.raises(kind, match=f"(?s){told}"):
            batches.batch(0)
    assert digest(batches, 0) == digest(stream(folder, workers=0), 0)
    assert capfd.readouterr() == ("", "")  # no stray traceback


def test_one_who_waits_for_a_stalled_worker_looks_for_a_stop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_workers, "POLL_SECONDS", 0.01)
    batches, here = stream(folder, workers=1), stream(folder, workers=0)
    batches.batch(0)
    waited: list[float] = []

    def stalled(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            raise StoppedError(signal.SIGTERM, "stopped")

    os.kill(the_worker(), signal.SIGSTOP)
    batches.stalled = stalled
    with pytest.raises(StoppedError):
        _ = [batches.batch(step) for step in range(1, 20)]
    assert waited == sorted(waited)

    # Control: without a stop it waits, and the batches are those that were asked for.
    batches.stalled = lambda _: None
    assert digest(batches, 1) == digest(here, 1)
    held = the_worker()
    os.kill(held, signal.SIGSTOP)
    calls: list[float] = []

    def woken(seconds: float) -> None:
        calls.append(seconds)
        if len(calls) == 3:
            os.kill(held, signal.SIGCONT)

    batches.stalled = woken
    assert [digest(batches, s) for s in range(2, 20)] == [digest(here, s) for s in range(2, 20)]
    assert len(calls) >= 3


def test_a_stop_ends_a_step_that_waits_long_enough() -> None:
    class Runner:
        stop = StopFlag()

    hooks = _StageHooks.__new__(_StageHooks)
    hooks._runner = Runner()  # type: ignore[assignment]
    hooks._saved = None
    hooks._commit = type("Commit", (), {"stage": "search"})()
    Runner.stop.signal_number = None
    hooks.stalled(1e6)
    Runner.stop.signal_number = int(signal.SIGTERM)
    hooks.stalled(STALL_SECONDS / 2)  # the step may still come to its end, and be saved
    with pytest.raises(StoppedError) as caught:
        hooks.stalled(STALL_SECONDS)
    assert caught.value.shell_code == 143
