"""Locks between processes: the operating system frees them when their holder dies."""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from weakref import WeakSet

from d2nas.errors import BusyError, DamagedArtifactError, StorageError, one_line
from d2nas.files.strict_json import canonical_json, parse_json
from d2nas.files.verified_folder import read_plain_file

from .fsio import FileSystem, open_lock_file, safe_run_name, storage_error
from .layout import Layout

STORE_LOCK_SECONDS = 60.0
"""How long to wait for another process that names, drops or collects versions."""

BUNDLE_LOCK_SECONDS = 30.0
"""How long to wait for another process that writes the same bundle."""

REMOVED_PREFIX = "removed-"
"""Of staging folders that hold what is being removed: nobody writes them."""

_POLL_SECONDS = 0.005
_MAX_INFO_BYTES = 4096
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})


class HeldLock:
    """A lock on a file, held until it is released or the process ends."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        _locks.add(self)

    def release(self) -> None:
        """Unlock; never raises, as closing the file would do it alone."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        with suppress(OSError):  # for a process that was forked meanwhile and has the file, too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        with suppress(OSError):
            os.close(descriptor)

    def leave_to_parent(self) -> None:
        """Close the file in a process just forked: else the lock would outlive its holder."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


_locks: WeakSet[HeldLock] = WeakSet()


def _after_fork() -> None:
    for lock in _locks:
        lock.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)


def acquire(path: Path, *, seconds: float) -> HeldLock | None:
    """Return the held lock, or None if another holder kept it for ``seconds``.

    Raises ``StorageError`` for whatever else the operating system says, also on a file system
    without locks, and ``DamagedArtifactError`` for a link.
    """
    if os.path.islink(path):  # opening it could make a file elsewhere
        raise DamagedArtifactError(f"{path}: is a symbolic link", hint="remove the link")
    end = time.monotonic() + seconds
    while True:
        try:
            lock = _tried(path)
        except BlockingIOError:  # held by another
            if time.monotonic() >= end:
                return None
        except PermissionError as error:
            # So says a Windows share of a held lock, or whoever forbids locking.
            if time.monotonic() >= end:
                raise storage_error(error, "lock", path) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise _no_locks(path) from error
            raise storage_error(error, "lock", path) from error
        else:
            if lock is not None:
                return lock
            continue  # the file was removed in between: a lock on nothing
        time.sleep(_POLL_SECONDS)


def _tried(path: Path) -> HeldLock | None:
    """Lock a file; None if it has lost its name. Raises ``OSError``."""
    lock = HeldLock(open_lock_file(path))
    try:
        fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, lock.descriptor):
            lock.release()
            return None
    except BaseException:
        lock.release()
        raise
    return lock


def _is_at(path: Path, descriptor: int) -> bool:
    status = os.fstat(descriptor)
    if status.st_nlink:
        return True
    try:  # some file systems never count names
        return os.path.samestat(status, os.lstat(path))
    except FileNotFoundError:
        return False


def _no_locks(path: Path) -> StorageError:
    return StorageError(
        f"cannot lock {path}: this file system has no locks",
        hint="put the store on a local disk with --store",
    )


@contextmanager
def store_lock(layout: Layout, file_system: FileSystem) -> Iterator[None]:
    """Hold the short lock around naming, dropping and collecting versions.

    Raises ``BusyError`` if it is not free within ``STORE_LOCK_SECONDS``.
    """
    file_system.make_folder(layout.locks)
    lock = acquire(layout.lock_file("store"), seconds=STORE_LOCK_SECONDS)
    if lock is None:
        raise BusyError(
            f"the store {layout.root} was busy for {STORE_LOCK_SECONDS:.0f} s",
            hint="wait until the other d2nas command is done",
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def run_lock(layout: Layout, file_system: FileSystem, run: str) -> Iterator[None]:
    """Hold a run's lock; raises ``BusyError`` at once, naming the holder, if it is not free."""
    name = f"run-{safe_run_name(run)}"
    file_system.make_folder(layout.locks)
    information = layout.locks / f"{name}.json"
    with _held(layout.lock_file(name), information, file_system, what=f"run {run}", seconds=0):
        yield


@contextmanager
def bundle_lock(exported: Path, name: str) -> Iterator[None]:
    """Hold the lock around writing the bundle ``exported/name``.

    Its files lie beside the bundle: in it, a reader would refuse them, and a model server takes
    every folder of ``exported`` for a model. Raises ``BusyError``, naming the holder, if it is not
    free within ``BUNDLE_LOCK_SECONDS``.
    """
    lock_file, information = exported / f".{name}.lock", exported / f".{name}.lock.json"
    what = f"bundle {exported / name}"
    with _held(lock_file, information, FileSystem(), what=what, seconds=BUNDLE_LOCK_SECONDS):
        yield


@contextmanager
def _held(
    lock_file: Path, information: Path, file_system: FileSystem, *, what: str, seconds: float
) -> Iterator[None]:
    lock = acquire(lock_file, seconds=seconds)
    if lock is None:
        raise BusyError(
            f"{what} is in use by {_holder(information)}",
            hint="wait until it is done, or use another run name",
        )
    try:
        # For the message only: the lock holds without it.
        with suppress(StorageError):
            file_system.remove_file(information)
            file_system.write_file(information, _describe_holder())
        yield
    finally:
        with suppress(StorageError):
            file_system.remove_file(information)
        lock.release()


def _describe_holder() -> bytes:
    return canonical_json(
        {
            "host": platform.node(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _holder(information: Path) -> str:
    try:
        values = parse_json(
            read_plain_file(information, max_bytes=_MAX_INFO_BYTES), what=str(information)
        )
        host, started = (one_line(str(values[key]), 64) for key in ("host", "started"))
        return f"process {values['pid']:d} on {host}, started {started}"
    except (DamagedArtifactError, StorageError, KeyError, TypeError, ValueError):
        return "another process"


def staging_lock_name(staging: str) -> str:
    """Return the name of the lock that a staging folder's writer holds."""
    return f"staging-{staging}"


def is_live(layout: Layout, staging: str) -> bool:
    """Whether the writer of this staging folder is alive. Call it under the store lock.

    The lock itself is asked, which makes its file where there is none: that none is seen is no
    proof that nobody holds it.
    """
    if staging.startswith(REMOVED_PREFIX):
        return False
    lock = acquire(layout.lock_file(staging_lock_name(staging)), seconds=0)
    if lock is None:
        return True
    lock.release()
    return False
