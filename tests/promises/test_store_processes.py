"""The store among processes: kills, locks, many writers, and the limits of a disk.

Each protection is also taken away once, to see the test notice.
"""

import errno
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from campaigns import count
from faults import commit, contents, files_of, leftovers, lineage_in
from store_children import holder, run_to_end, start
from toy import Place

from d2nas.errors import BusyError, DamagedArtifactError, StorageError
from pipeline.store import FileSystem, Store, garbage, locks

KILLS = count(200, 2000)
PROCESSES, COMMITS = 8, count(25, 250)
HOLDERS = count(50, 500)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long this process's main thread slept, each time."""
    slept: list[float] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            slept.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    return slept


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# Kills


def killed(root: Path, writer: str, seed: int, rounds: int) -> tuple[int, int, int]:
    """Kill writers at random moments; return how many versions are acknowledged, broken, lost."""
    (line,) = run_to_end("kill", root, writer, seed, rounds)
    acknowledged, broken, lost = map(int, line.split())
    return acknowledged, broken, lost


def test_kills_break_and_lose_nothing_and_gc_removes_only_what_is_dead(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    root = quick_path / "store"
    acknowledged, broken, lost = killed(root, "store", seed, KILLS)
    assert (broken, lost) == (0, 0), f"seed {seed}"
    assert acknowledged >= KILLS
    store = Store(root)
    assert len(leftovers(store)) >= KILLS // 20, "hardly a kill hit a commit"
    # 50 more that are reached, half of them by no name of their own.
    parents = [commit(store, contents(number), run="parent") for number in range(25)]
    for number, parent in enumerate(parents):
        changes = {"run": "child", "stage": "derive", "parents": {"search": parent.id}}
        commit(store, contents(1000 + number), **changes)
    for path in (root / "runs" / "parent" / "search").iterdir():
        path.unlink()
    names = store.references()
    reachable = {reference.id for reference in names} | {parent.id for parent in parents}
    with holder("hold-staging", root):
        (live,) = (
            folder
            for folder in (root / "staging").iterdir()
            if garbage.is_live(store._layout, folder.name)
        )
        # Twice: a first pass that took the lock's file would make a second one take the work.
        for _ in range(2):
            store.collect_garbage()
            assert [path.name for path in (root / "staging").iterdir()] == [live.name]
            assert (live / "weights.bin").read_bytes() == b"unfinished"
            assert leftovers(store) == [live.name, f"staging-{live.name}.lock"]
        assert {folder.name for folder in (root / "versions").iterdir()} == reachable
        assert store.references() == names
        monkeypatch.setattr(garbage, "is_live", lambda *_: False)  # control: the check is gone
        store.collect_garbage()
        assert not live.exists()
        monkeypatch.undo()
    store.collect_garbage()
    assert leftovers(store) == []
    assert store.verify().damaged == []


def test_control_kills_break_what_is_written_in_place(quick_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    acknowledged, broken, _ = killed(quick_path, "careless", seed, 100)
    assert acknowledged >= 100
    assert broken >= 50, f"seed {seed}"


# Limits of a disk

LIMITS = (
    *(f"300000:0:{limit}" for limit in (0, 1, 4096, 100_000, 200_000, 299_999)),
    "100:0:99",  # a small file
    "100:0:300",  # the manifest
    "100:4000:4000",  # the name
    "300000:4000:150000",
)
"""Size of the files, size of the note, and the largest file that the disk takes."""


def test_real_limits_cost_nothing_that_was_there(quick_path: Path) -> None:
    lineage = lineage_in(quick_path / "store")
    before, in_place = lineage.references(), quick_path / "in-place"
    in_place.write_bytes(contents(1, size=300_000)["weights.bin"])
    messages = run_to_end("limits", lineage.root, in_place, *LIMITS)
    assert len(messages) == len(LIMITS) == 10
    assert all("file too large" in message for message in messages)
    for what in ("weights.bin", "manifest.json", "v3.json"):
        assert any(what in message for message in messages), what
    assert lineage.references() == before
    assert lineage.verify().damaged == []
    lineage.collect_garbage()
    assert leftovers(lineage) == []
    # Control: what was saved in place is lost.
    assert in_place.stat().st_size < 300_000


# Locks


def test_run_lock_names_its_holder_and_dies_with_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]
) -> None:
    with holder("hold-run", store.root, "quickstart") as process:
        with pytest.raises(BusyError) as caught, store.lock_run("quickstart"):
            pass
        assert sleeps == []  # it does not wait
        # Control: who waits sleeps.
        assert locks.acquire(store.root / "locks/run-quickstart.lock", seconds=0.01) is None
        assert sleeps
        assert caught.value.exit_code == 8
        assert f"process {process.pid} on {os.uname().nodename}, started 20" in str(caught.value)
        with store.lock_run("other"):
            pass
        (store.root / "locks/run-quickstart.json").write_bytes(b'{"pid": "x"')
        with pytest.raises(BusyError, match="another process"), store.lock_run("quickstart"):
            pass
        with monkeypatch.context() as patch:  # control: without the lock both would work
            patch.setattr(locks, "acquire", lambda *_, **__: locks.HeldLock(-1))
            with store.lock_run("quickstart"):
                pass
        process.kill()
        process.wait()
        with store.lock_run("quickstart"):
            pass


REFUSED = {
    errno.EIO: "input/output error",
    errno.ENOLCK: "this file system has no locks",
    errno.ENOSYS: "this file system has no locks",
    errno.EOPNOTSUPP: "this file system has no locks",
    errno.EROFS: "read-only file system",
    errno.ENOSPC: "no space left",
}


def raiser(number: int, kind: str) -> Callable[..., Any]:
    """What fails with this error, as ``flock`` does or as opening a lock's file."""
    real = os.open

    def fail(what: Any, *arguments: Any, **named: Any) -> Any:
        if kind == "flock" or str(what).endswith(".lock"):
            raise OSError(number, os.strerror(number))
        return real(what, *arguments, **named)

    return fail


@pytest.mark.parametrize("number", [*REFUSED, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", ["flock", "open"])
def test_a_lock_that_is_refused_is_no_lock_that_is_held(
    kind: str, number: int, store: Store, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]
) -> None:
    with store.lock_run("quickstart"):
        pass
    patched = {"flock": (locks.fcntl, "flock"), "open": (os, "open")}[kind]
    monkeypatch.setattr(*patched, raiser(number, kind))
    with (
        pytest.raises(StorageError, match=REFUSED.get(number, "permission denied")) as caught,
        store.lock_run("quickstart"),
    ):
        pass
    assert caught.value.hint
    with pytest.raises(StorageError, match="cannot lock"):
        locks.acquire(store.root / "locks/store.lock", seconds=0.01)
    # On a Windows share it is what a held lock looks like: waited for, and then told as it is.
    assert bool(sleeps) == (number == errno.EACCES and kind == "flock")
    # No marker file either, which would outlive a killed holder.
    assert {path.suffix for path in (store.root / "locks").iterdir()} == {".lock"}


def test_control_a_lock_whose_error_is_swallowed_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]
) -> None:
    """As by libraries that take every error of ``flock`` for a lock that is held."""
    with store.lock_run("quickstart"):
        pass

    def swallowing(descriptor: int, operation: int) -> None:
        try:
            raiser(errno.EIO, "flock")(descriptor, operation)
        except OSError as error:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error

    monkeypatch.setattr(locks.fcntl, "flock", swallowing)
    assert locks.acquire(store.root / "locks/store.lock", seconds=0.01) is None
    assert sleeps


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.lock_run("quickstart"):
        pass
    file, flock = store.root / "locks/one.lock", locks.fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        if operation != locks.fcntl.LOCK_UN and not removed:
            file.unlink()
            removed.append(file)
        flock(descriptor, operation)

    removed: list[Path] = []
    monkeypatch.setattr(locks.fcntl, "flock", late)
    lock = locks.acquire(file, seconds=10)
    assert removed
    assert lock is not None
    assert locks.acquire(file, seconds=0) is None  # of the file that is there
    lock.release()


@contextmanager
def forked() -> Iterator[None]:
    """A process that was forked from this one, and lives until the end of the ``with``."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(ready[1], b".")
        os.close(go[1])
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    yield
    for number in (*ready, *go):
        os.close(number)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("is_control", [False, True])
def test_a_forked_process_does_not_keep_a_lock(
    is_control: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_control:
        monkeypatch.setattr(locks.HeldLock, "leave_to_parent", lambda _: None)
    file = store.root.parent / "one.lock"
    lock = locks.acquire(file, seconds=0)
    assert lock is not None
    with forked():
        # As if this process had died: nothing is unlocked on purpose.
        os.close(lock.descriptor)
        lock.descriptor = -1
        again = locks.acquire(file, seconds=0)
        assert (again is None) == is_control
        if again is not None:
            again.release()


def test_lock_does_not_follow_links(store: Store) -> None:
    with store.lock_run("quickstart"):
        pass
    target = store.root.parent / "precious"
    target.write_bytes(b"precious")
    (store.root / "locks/run-linked.lock").symlink_to(target)
    with pytest.raises(DamagedArtifactError), store.lock_run("linked"):
        pass
    assert target.read_bytes() == b"precious"


def test_busy_store_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STORE_LOCK_SECONDS", 0.05)
    commit(store, contents(1))
    with store.stage(), locks.store_lock(store._layout, FileSystem()):
        for call in (store.collect_garbage, lambda: store.store_cache("a", 1, 1)):
            with pytest.raises(BusyError) as caught:
                call()
            assert caught.value.exit_code == 8


# Many writers


def lost_or_mixed(store: Store, seeds: Iterable[int], num_names: int) -> list[str]:
    """Return what is wrong with a store into which each of ``seeds`` was committed once."""
    names = [f"quickstart/search@v{number}" for number in range(1, num_names + 1)]
    found = [reference.name for reference in store.references("quickstart")]
    problems = [f"no {name}" for name in names if name not in found]
    kept = [files_of(store.open(name)) for name in found]
    problems += [f"lost {seed}" for seed in seeds if contents(seed) not in kept]
    return problems + [f"of nobody: {len(kept)}"] * (len(kept) != num_names)


@contextmanager
def collecting(store: Store, bug: str) -> Iterator[None]:
    """Let a process remove garbage again and again meanwhile."""
    end = store.root.parent / "end"
    with holder("collect", store.root, bug, end) as process:
        yield
        end.touch()
        assert process.wait() == 0
        assert process.stdout is not None
        assert int(process.stdout.read()) >= 2


def names_of(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What processes that commit said, when all have ended well."""
    said = [process.communicate(timeout=600)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [name for lines in said for name in lines]


def test_processes_lose_nothing_while_another_removes_garbage(quick_path: Path) -> None:
    store = Store(quick_path / "store")
    commit(store, contents(-1), run="first")  # something that the first pass can look at
    seeds = [1000 * number + index for number in range(PROCESSES) for index in range(COMMITS)]
    with collecting(store, "none"):
        firsts = [1000 * number for number in range(PROCESSES)]
        names = names_of([start("commit", store.root, COMMITS, *firsts)])
    total = PROCESSES * COMMITS
    assert len(names) == len(set(names)) == total >= 200
    assert lost_or_mixed(store, seeds, total) == []
    assert store.verify(names).damaged == store.verify().damaged == []
    assert store.verify(names).checked == total
    assert leftovers(store) == []


@pytest.mark.parametrize("bug", ["none", "store-lock"])
def test_control_without_the_store_lock_garbage_collection_takes_what_is_being_named(
    bug: str, quick_path: Path
) -> None:
    store = Store(quick_path / "store")
    commit(store, contents(-1), run="first")
    with collecting(store, bug):
        names = names_of(
            [start("commit-slowly", store.root, bug, 1000 * number, 15) for number in range(2)]
        )
    assert len(names) == 30
    lost = "failed" in names or bool(store.verify().damaged)
    assert lost == (bug == "store-lock")


def test_control_without_exclusive_names_work_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two processes that list the names at the same time, as if there were no lock.
    monkeypatch.setattr("pipeline.store.commit.places", lambda *_: [])
    monkeypatch.setattr(FileSystem, "publish_file", FileSystem.replace_file)
    for seed in (1, 2):
        commit(store, contents(seed))
    assert lost_or_mixed(store, [1, 2], 2) == ["no quickstart/search@v2", "lost 1", "of nobody: 1"]


# One run, two processes


def test_the_second_process_of_a_run_exits_8_and_names_the_first(
    place: Place, capfd: pytest.CaptureFixture[str], sleeps: list[float]
) -> None:
    words = ("search", str(place.preset), "--method", "random")
    with holder("hold-run", place.store, "toy") as process:
        assert place.run(*words) == 8
        assert sleeps == []  # at once
        error, hint = capfd.readouterr().err.splitlines()[-2:]
        holding = rf"process {process.pid} on {re.escape(os.uname().nodename)}, started 20\d\d-"
        assert re.search(holding, error)
        assert hint == "hint: wait until it is done, or use another run name"
        assert place.run(*words, "--name", "other") == 0  # another run is not kept waiting
    assert place.run(*words) == 0
    assert Store(place.store).open("toy/search@v1")


def test_killed_holders_leave_nothing_and_control(quick_path: Path) -> None:
    (line,) = run_to_end("kill-lock-holders", quick_path / "store", HOLDERS)
    num_free, num_pid_file_free = line.split()
    assert int(num_free) == HOLDERS >= 50
    assert int(num_pid_file_free) == 0  # control: a file with a number outlives its process
