"""What may be removed: what dead writers left, what no name reaches, old checkpoints (no torch).

Only under the store lock, and only if it is known what all names reach: with one damaged
reference or manifest nothing can be told unreachable, so nothing is removed.
"""

import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from d2nas.errors import DamagedArtifactError, StorageError
from d2nas.verified_folder import is_digest, read_manifest

from .fsio import TEMPORARY_PREFIX, FileSystem, storage_error
from .layout import Layout, names_in
from .locks import is_live, staging_lock_name, store_lock
from .manifest import parse_manifest
from .references import STATE_STAGES, Place, Reference, places, read_reference, scan
from .version import hint_for, open_version


@dataclass(frozen=True)
class Garbage:
    """One thing that may be removed."""

    path: Path
    reason: str
    size: int
    """In bytes."""


def find_garbage(layout: Layout, file_system: FileSystem) -> list[Garbage]:
    """Return what ``collect_garbage`` would remove.

    Raises ``DamagedArtifactError`` if a reference, or what it reaches, cannot be read.
    """
    if not os.path.isdir(layout.root):
        return []
    with store_lock(layout, file_system):
        return _garbage(layout)


def collect_garbage(layout: Layout, file_system: FileSystem) -> list[Garbage]:
    """Remove dead staging folders, half-written files and versions that no name reaches.

    Returns what was removed. Raises as ``find_garbage``, then nothing was removed.
    """
    if not os.path.isdir(layout.root):
        return []
    with store_lock(layout, file_system):
        garbage = _garbage(layout)
        for item in garbage:
            if item.path.parent == layout.versions:
                discard(layout, file_system, item.path)
            else:
                file_system.remove_tree(item.path)
        _remove_dead_locks(layout, file_system)
    return garbage


def _garbage(layout: Layout) -> list[Garbage]:
    references, damaged = scan(layout)
    if damaged:
        raise DamagedArtifactError(
            f"nothing can be removed while {damaged[0].problem}",
            hint=f"remove {damaged[0].path} if its version is no longer wanted, then try again",
        )
    reached = reachable(layout, references)
    found = [
        Garbage(layout.versions / name, "no name reaches it", size_of(layout.versions / name))
        for name in names_in(layout.versions)
        if name not in reached and is_digest(name)
    ]
    for name in names_in(layout.staging):
        if not is_live(layout, name):
            path = layout.staging_folder(name)
            found.append(Garbage(path, "its writer is gone", size_of(path)))
    # Temporary files are written under the store lock alone, so nobody is writing them now.
    for folder, _, names in os.walk(layout.runs):
        found += _temporary(Path(folder), names)
    return found + _temporary(layout.cache, names_in(layout.cache))


def _temporary(folder: Path, names: Iterable[str]) -> list[Garbage]:
    return [
        Garbage(folder / name, "half-written file", size_of(folder / name))
        for name in names
        if name.startswith(TEMPORARY_PREFIX)
    ]


def reachable(layout: Layout, references: Sequence[Reference]) -> set[str]:
    """Return the ids that ``references`` reach, directly or through parents.

    Raises ``DamagedArtifactError`` if a manifest on the way cannot be read.
    """
    reached: set[str] = set()
    for reference in references:
        hint = hint_for(reference)
        waiting = [reference.id]
        while waiting:
            version_id = waiting.pop()
            if version_id in reached:
                continue
            folder = layout.version(version_id)
            manifest = parse_manifest(read_manifest(folder, hint=hint), what=str(folder), hint=hint)
            reached.add(version_id)
            waiting += manifest.parents.values()
    return reached


def move_aside(layout: Layout, file_system: FileSystem, path: Path) -> Path:
    """Take a version out of its place in one step; returns where it is now.

    Nobody holds the lock of that place, so ``gc`` removes it if the caller cannot.
    """
    aside = layout.staging_folder(f"removed-{secrets.token_hex(16)}")
    file_system.make_folder(aside.parent)
    file_system.rename_folder(path, aside)
    file_system.sync_folder(path.parent)
    return aside


def discard(layout: Layout, file_system: FileSystem, path: Path) -> None:
    """Remove a version: at once from its place, then file by file."""
    file_system.remove_tree(move_aside(layout, file_system, path))


def _remove_dead_locks(layout: Layout, file_system: FileSystem) -> None:
    prefix, suffix = staging_lock_name(""), ".lock"
    for name in names_in(layout.locks):
        if name.startswith(prefix) and name.endswith(suffix):
            staging = name.removeprefix(prefix).removesuffix(suffix)
            if not is_live(layout, staging):
                file_system.remove_file(layout.locks / name)


def retain_states(
    layout: Layout, file_system: FileSystem, run: str, stage: str, keep: int
) -> list[str]:
    """Drop the checkpoints older than the newest ``keep`` that verify; returns their names.

    What was trained with other settings and did not finish is days of work to somebody who only
    mistyped one: of each such key the newest stays too.
    """
    if keep < 1:
        raise ValueError(f"at least one checkpoint must stay, not {keep}")
    with store_lock(layout, file_system):
        finished = _keys(places(layout, run, stage.removesuffix("-state")))
        older: list[Place] = []
        kept: dict[str | None, int] = {}
        newest: str | None = None
        for place in reversed(_state_places(layout, run, stage)):
            key = _key(place) or newest
            newest = newest or key
            wanted = keep if key == newest else int(key not in finished)
            if kept.get(key, 0) >= wanted:
                older.append(place)
            elif _verifies(layout, place):
                kept[key] = kept.get(key, 0) + 1
        return _drop(layout, file_system, older)


def _keys(known: Sequence[Place]) -> set[str | None]:
    return {_key(place) for place in known}


def _key(place: Place) -> str | None:
    """Return what a reference was made for; None for one that cannot be read."""
    try:
        return read_reference(place).key
    except DamagedArtifactError:
        return None


def drop_states(layout: Layout, file_system: FileSystem, run: str, stage: str) -> list[str]:
    """Drop all checkpoints of a stage; returns their names."""
    with store_lock(layout, file_system):
        return _drop(layout, file_system, _state_places(layout, run, stage))


def _state_places(layout: Layout, run: str, stage: str) -> list[Place]:
    if stage not in STATE_STAGES:
        raise ValueError(f"{stage} has no checkpoints")
    return places(layout, run, stage)


def _verifies(layout: Layout, place: Place) -> bool:
    try:
        reference = read_reference(place)
        open_version(layout, reference.id, reference)
    except DamagedArtifactError:
        return False
    return True


def _drop(layout: Layout, file_system: FileSystem, dropped: Sequence[Place]) -> list[str]:
    ids = set()
    for place in dropped:
        with suppress(DamagedArtifactError):  # whatever it stood for is left to gc
            ids.add(read_reference(place).id)
        file_system.remove_file(place.path)
    names = [place.name for place in dropped]
    references, damaged = scan(layout)
    try:
        unreached = set() if damaged else ids - reachable(layout, references)
    except (DamagedArtifactError, StorageError):
        unreached = set()
    for version_id in sorted(unreached):
        if os.path.lexists(layout.version(version_id)):
            discard(layout, file_system, layout.version(version_id))
    return names


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; links count as themselves."""
    try:
        if os.path.islink(path) or not os.path.isdir(path):
            return os.lstat(path).st_size
        return sum(
            os.lstat(os.path.join(folder, name)).st_size
            for folder, _, names in os.walk(path)
            for name in names
        )
    except OSError as error:
        raise storage_error(error, "list", path) from error
