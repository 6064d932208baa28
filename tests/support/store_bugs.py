"""Bugs, put into the store on purpose, that its tests must find.

Imports neither torch nor pytest, because processes use it that must start fast.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.store import FileSystem, garbage, locks
from pipeline.store import commit as commit_module
from pipeline.store.layout import Layout, names_in


def _everything_is_dead() -> None:
    garbage.is_live = lambda *_: False


def _only_the_lock_file_goes() -> None:
    remove = garbage._remove_dead_locks

    def careless(layout: Layout, file_system: FileSystem) -> None:
        real, garbage.is_live = garbage.is_live, lambda *_: False
        remove(layout, file_system)
        garbage.is_live = real

    garbage._remove_dead_locks = careless


def _parents_are_forgotten() -> None:
    garbage.reachable = lambda _, references: {reference.id for reference in references}


def _absence_is_proof() -> None:
    def unreached(layout: Layout, reached: set[str]) -> tuple[set[str], dict[str, str]]:
        return set(names_in(layout.versions)) - reached, {}

    garbage._unnamed_versions = unreached


@contextmanager
def _no_lock(layout: Layout, file_system: FileSystem) -> Iterator[None]:
    file_system.make_folder(layout.locks)
    yield


def _no_store_lock() -> None:
    for module in (garbage, commit_module):
        module.store_lock = _no_lock  # type: ignore[attr-defined]


def _no_run_lock() -> None:
    real = locks.acquire

    def acquire(path: Path, *, seconds: float) -> locks.HeldLock | None:
        own = path.with_name(os.urandom(4).hex()) if path.name.startswith("run-") else path
        return real(own, seconds=seconds)

    locks.acquire = acquire


BUGS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "liveness": _everything_is_dead,
    "lock-file": _only_the_lock_file_goes,
    "reachability": _parents_are_forgotten,
    "absence": _absence_is_proof,
    "store-lock": _no_store_lock,
    "run-lock": _no_run_lock,
}
