"""Faulty file systems, careless writers and what they write, for the tests of the store.

Imports neither torch nor pytest, because child processes use it that must start fast.
"""

import errno
import hashlib
import json
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from d2nas.errors import DamagedArtifactError
from d2nas.files.verified_folder import MANIFEST_NAME
from pipeline.stages import ALL
from pipeline.store import FileSystem, Manifest, Staging, Store, Version
from pipeline.store.fsio import TEMPORARY_PREFIX

PROJECT = Path(__file__).resolve().parents[2]
ERRORS = {"full disk": errno.ENOSPC, "I/O error": errno.EIO}
FAULTS = ("full disk", "I/O error", "crash", "torn write")
OTHER_KEY = "f" * 64
KEY = hashlib.sha256(b"key").hexdigest()


class Crash(BaseException):
    """The process is gone: nothing in it runs any more, so nothing may catch this."""


def _skip() -> None:
    """Stand in for a sync, which shows only after a power cut and costs most of the time."""


class FaultyFileSystem(FileSystem):
    """Fails at one operation, counted from 1; 0 never fails and only keeps the log.

    ``full disk`` and ``I/O error`` leave half of a write behind and then raise; ``crash`` stops
    before the operation; ``torn write`` stops in the middle of a write, or right after another
    operation was done.
    """

    def __init__(self, fail_at: int = 0, fault: str = "crash") -> None:
        self.fail_at = fail_at
        self.fault = fault
        self.log: list[tuple[str, Path]] = []
        self.dead = False
        self.tearing = False

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        if self.dead:
            raise Crash
        self.log.append((kind, path))
        if kind.startswith("sync"):
            action = _skip
        if len(self.log) != self.fail_at:
            action()
            return
        if self.fault in ERRORS:
            if kind == "write":
                self._tear(action)
            number = ERRORS[self.fault]
            raise OSError(number, os.strerror(number), str(path))
        if self.fault == "torn write":
            self._tear(action)
        self.dead = True
        raise Crash

    def _tear(self, action: Callable[[], object]) -> None:
        self.tearing = True
        try:
            action()
        finally:
            self.tearing = False

    def _write(self, descriptor: int, data: bytes) -> None:
        super()._write(descriptor, data[: len(data) // 2] if self.tearing else data)


class ForgetfulFileSystem(FaultyFileSystem):
    """Leaves one operation out of what really happens, and out of the log."""

    def __init__(self, forgotten: int) -> None:
        super().__init__()
        self.forgotten = forgotten
        self.num_seen = 0

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        self.num_seen += 1
        if self.num_seen != self.forgotten:
            super()._operation(kind, path, action)


def order_problems(log: list[tuple[str, Path]]) -> list[str]:
    """Return what in a commit's operations would not survive a power cut."""
    problems: list[str] = []
    unsynced_files: set[Path] = set()
    unsynced_names: dict[Path, str] = {}
    newest = ""
    for kind, path in log:
        if kind == "sync file":
            unsynced_files.discard(path)
        elif kind == "sync folder":
            unsynced_names = {
                name: why for name, why in unsynced_names.items() if name.parent != path
            }
        elif kind == "unlink":
            unsynced_names.pop(path, None)
        elif kind in ("rename", "link", "replace"):
            problems += [f"{kind} before sync of {file}" for file in unsynced_files]
            problems += [
                f"{kind} before sync of {why} {name}"
                for name, why in unsynced_names.items()
                if not name.name.startswith(TEMPORARY_PREFIX)
            ]
        if kind in ("create", "write"):
            unsynced_files.add(path)
            if not path.name.startswith(TEMPORARY_PREFIX):  # of the version itself
                newest = path.name
        if kind == "rename" and newest != MANIFEST_NAME:
            problems.append(f"{newest} was written after the manifest")
        if kind == "replace":  # the temporary file has this name now
            unsynced_names = {
                name: why
                for name, why in unsynced_names.items()
                if name.parent != path.parent or not name.name.startswith(TEMPORARY_PREFIX)
            }
        if kind in ("create", "mkdir", "rename", "link", "replace"):
            unsynced_names[path] = kind
    return problems + [f"never synced: {why} {name}" for name, why in unsynced_names.items()]


def contents(seed: int, *, size: int = 600) -> dict[str, bytes]:
    """Return the files of a version; distinct for every seed."""
    draw = random.Random(seed)
    return {
        "weights.bin": draw.randbytes(size),
        "other.bin": draw.randbytes(size),
        "metrics.jsonl": f'{{"seed":{seed}}}\n'.encode(),
    }


def commit(
    store: Store,
    files: Mapping[str, bytes],
    *,
    run: str = "quickstart",
    stage: str = "search",
    staging: Staging | None = None,
    **changes: Any,
) -> Version:
    """Commit ``files``; ``changes`` replace arguments of ``Store.commit``.

    ``staging`` is one that is open already, and may hold some of the files.
    """
    with ExitStack() as ending:
        if staging is None:
            staging = ending.enter_context(store.stage())
        else:
            ending.push(staging)
        for name, data in files.items():
            if name not in staging.files:
                staging.write(name, data)
        arguments: dict[str, Any] = {
            "kind": "state" if stage.endswith("-state") else stage,
            "key": KEY,
            "parents": {},
            "config": {"epochs": 2, "lr": 0.05},
            "seed": 7,
            "code_schema": 1,
            "versions": {"torch": "2.10.0"},
            "facts": {"accuracy": 0.5},
            "note": {"host": "somewhere", "created": "2026-01-01T00:00:00Z"},
        }
        return store.commit(staging, run=run, stage=stage, **(arguments | changes))


class _DyingBeforeItsName(FaultyFileSystem):
    """Is gone where a version has its place and its name would be published."""

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        self.dead = self.dead or kind == "link"
        super()._operation(kind, path, action)


def leave_unnamed(root: Path, seed: int) -> Path:
    """Leave a version whose writer died before its name; returns its folder."""
    before = set(root.glob("versions/*"))
    with suppress(Crash):
        commit(Store(root, _DyingBeforeItsName()), contents(seed), run="gone")
    (made,) = set(root.glob("versions/*")) - before
    return made


def careless_commit(store: Store, file_system: FileSystem, files: Mapping[str, bytes]) -> Path:
    """The writer that the protocol replaces: in the final place, the manifest first."""
    manifest = Manifest.model_validate(
        {
            "kind": "search",
            "key": KEY,
            "files": {
                name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in files.items()
            },
            "parents": {},
            "config": {},
            "seed": 7,
            "code_schema": 1,
            "versions": {},
            "facts": {},
        }
    )
    folder = store.root / "versions" / manifest.id
    file_system.make_folder(folder)
    file_system.write_file(folder / MANIFEST_NAME, manifest.to_bytes())
    for name, data in files.items():
        file_system.write_file(folder / name, data)
    file_system.sync_folder(folder)
    return folder


def leftovers(store: Store) -> list[str]:
    """Return what garbage collection should have removed, whatever it thinks itself."""
    staging = store.root / "staging"
    found = [path.name for path in staging.iterdir()] if staging.is_dir() else []
    found += [path.name for path in store.root.rglob(".tmp-*")]
    return found + [path.name for path in store.root.glob("locks/staging-*")]


def files_of(version: Version) -> dict[str, bytes]:
    """Return all files of a version, as it reads them."""
    return {name: version.read(name) for name in version.manifest.files}


def raw_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by name, read by nothing that is under test; none if gone."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def named_ids(root: Path) -> set[str]:
    """Return the ids that have a name, read by nothing that is under test."""
    paths = root.glob("runs/*/*/v*.json")
    return {json.loads(path.read_bytes())["body"]["id"] for path in paths}


def lineage_in(root: Path) -> Store:
    """Return a store with search@v1, search@v2, and derive@v1 made from the second."""
    store = Store(root, FaultyFileSystem(), kinds=ALL)
    commit(store, contents(1), key=OTHER_KEY)
    newer = commit(store, contents(2))
    commit(store, contents(3), stage="derive", parents={"search": newer.id})
    return store


def refusal(store: Store, target: str) -> DamagedArtifactError:
    """Return the error that refuses ``target``, which must be of the right form."""
    try:
        store.open(target)
    except DamagedArtifactError as error:
        refused = error
    else:
        raise AssertionError(f"{target} was opened")
    assert refused.exit_code == 4
    assert "\n" not in str(refused)
    assert refused.hint
    return refused


@contextmanager
def memory_folder(fallback: Path) -> Iterator[Path]:
    """Give a folder in memory where there is one: hundreds of stores come and go faster there."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else fallback
    with tempfile.TemporaryDirectory(dir=parent, prefix="d2nas-test-") as folder:
        yield Path(folder)


class KillingFileSystem(FaultyFileSystem):
    """Kills its process at one operation, or in the middle of it: nothing is tidied up."""

    def __init__(self, kill_at: int, *, torn: bool) -> None:
        super().__init__()
        self.kill_at, self.torn = kill_at, torn

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        if len(self.log) + 1 == self.kill_at:
            if self.torn and not kind.startswith("sync"):
                self._tear(action)
            os.kill(os.getpid(), signal.SIGKILL)
        super()._operation(kind, path, action)


class MeetingFileSystem(FaultyFileSystem):
    """Lets another process come by before one operation."""

    def __init__(self, meet_at: int, other: Callable[[], object]) -> None:
        super().__init__()
        self.meet_at, self.other = meet_at, other

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        if len(self.log) + 1 == self.meet_at:
            self.other()
        super()._operation(kind, path, action)


class Vanishing:
    """Lets one call of the operating system, counted from 1, say "no such file"."""

    def __init__(self, root: Path, fail_at: int) -> None:
        self.root, self.fail_at, self.count = str(root), fail_at, 0

    def watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *arguments: Any, **named: Any) -> Any:
            inside = isinstance(path, int) or named.get("dir_fd") is not None
            if inside or os.fspath(path).startswith(self.root):
                self.count += 1
                if self.count == self.fail_at:
                    raise FileNotFoundError(2, "No such file or directory", str(path))
            return real(path, *arguments, **named)

        return call
