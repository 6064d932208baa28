"""Locks between processes: the operating system frees them when their holder dies (no torch)."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from d2nas.errors import BusyError, DamagedArtifactError, StorageError
from d2nas.strict_json import canonical_json, parse_json
from d2nas.verified_folder import read_plain_file

from .fsio import FileSystem, safe_run_name, storage_error
from .layout import Layout

STORE_LOCK_SECONDS = 60.0
"""How long to wait for another process that names, drops or collects versions."""

BUNDLE_LOCK_SECONDS = 30.0
"""How long to wait for another process that writes the same bundle."""

REMOVED_PREFIX = "removed-"
"""Of staging folders that hold what is being removed: nobody writes them."""

_POLL_SECONDS = 0.005
_MAX_INFO_BYTES = 4096


def acquire(path: Path, *, seconds: float) -> BaseFileLock | None:
    """Return the held lock, or None if another holder kept it for ``seconds``.

    Raises ``StorageError``, also on a file system without locks.
    """
    if os.path.islink(path):  # opening it could empty a file elsewhere
        raise DamagedArtifactError(f"{path}: is a symbolic link", hint="remove the link")
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL_SECONDS)
    except Timeout:
        return None
    except NotImplementedError:
        raise _no_locks(path) from None
    except OSError as error:
        raise storage_error(error, "lock", path) from error
    if isinstance(lock, SoftFileLock):
        # A marker file would outlive a killed holder.
        lock.release()
        raise _no_locks(path)
    return lock


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
        host, started = (" ".join(str(values[key]).split())[:64] for key in ("host", "started"))
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
