"""Garbage collection: dead writers' files, versions that lost their names, old checkpoints.

Only under the store lock, and only if it is known what all names reach: with one damaged
reference or manifest nothing can be told unreachable, so nothing is removed. Nor is anything while
a version has no name that is seen and no record that it lost its names (``name_records``): absence
is no proof.
"""

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from d2nas.errors import DamagedArtifactError, StorageError
from d2nas.files.verified_folder import is_digest, read_manifest

from .fsio import TEMPORARY_PREFIX, FileSystem, is_there, storage_error
from .kinds import STATE, kind_of
from .layout import Layout, names_in
from .locks import REMOVED_PREFIX, is_live, staging_lock_name, store_lock
from .manifest import parse_manifest
from .name_records import add_name, read_record, recorded_ids, remove_name, remove_record
from .references import Place, Reference, places, read_reference, scan
from .version import hint_for, open_version


@dataclass(frozen=True)
class Garbage:
    """One thing that may be removed."""

    path: Path
    reason: str
    size: int
    """In bytes."""


def find_garbage(
    layout: Layout, file_system: FileSystem, *, everything_unnamed: bool = False
) -> list[Garbage]:
    """Return what ``collect_garbage`` would remove.

    Raises ``DamagedArtifactError`` if a reference, or what it reaches, cannot be read, and
    ``StorageError`` where versions may only have lost sight of their names, unless
    ``everything_unnamed`` says that those are garbage too.
    """
    if not _has_anything(layout):
        return []
    with store_lock(layout, file_system):
        return _garbage(layout, everything_unnamed=everything_unnamed)[0]


def _has_anything(layout: Layout) -> bool:
    """Whether a folder is a store at all: in another, not even a lock's file is made."""
    folders = (layout.versions, layout.runs, layout.name_records, layout.staging, layout.locks)
    return any(is_there(folder) for folder in folders)


def collect_garbage(
    layout: Layout, file_system: FileSystem, *, everything_unnamed: bool = False
) -> list[Garbage]:
    """Remove dead staging folders, half-written files and versions that lost their names.

    Returns what was removed. Raises as ``find_garbage``, then nothing was removed.
    """
    if not _has_anything(layout):
        return []
    with store_lock(layout, file_system):
        garbage, references = _garbage(layout, everything_unnamed=everything_unnamed)
        for item in garbage:
            if item.path.parent == layout.versions:
                discard(layout, file_system, item.path)
            else:
                file_system.remove_tree(item.path)
        _remove_dead_locks(layout, file_system)
        # Who published a name, or removed a version, may have died before this.
        for reference in references:
            add_name(layout, file_system, reference.id, reference.name)
        for version_id in sorted(recorded_ids(layout) - reachable(layout, references)):
            names = read_record(layout, version_id)
            if (everything_unnamed or not names) and not is_there(layout.version(version_id)):
                remove_record(layout, file_system, version_id)
    return garbage


def _garbage(layout: Layout, *, everything_unnamed: bool) -> tuple[list[Garbage], list[Reference]]:
    references, damaged = scan(layout)
    unreadable = [item for item in damaged if item.is_unreadable]
    if unreadable:
        raise StorageError(
            f"nothing can be removed while a name is not known: {unreadable[0].problem}",
            hint="check the disk and who may read the store",
        )
    if damaged:
        raise DamagedArtifactError(
            f"nothing can be removed while {damaged[0].problem}",
            hint=f"if its version is no longer wanted: remove {damaged[0].path}, then "
            "d2nas gc --everything-unnamed",
        )
    unnamed, unexplained = _unnamed_versions(layout, reachable(layout, references))
    if unexplained and not everything_unnamed:
        raise _out_of_sight(layout, unexplained)
    present = set(names_in(layout.versions))
    found = [
        Garbage(
            layout.version(version_id), "no name reaches it", size_of(layout.version(version_id))
        )
        for version_id in sorted(unnamed | (unexplained.keys() & present))
    ]
    for name in names_in(layout.staging):
        if not is_live(layout, name):
            path = layout.staging_folder(name)
            found.append(Garbage(path, "its writer is gone", size_of(path)))
    # Temporary files are written under the store lock alone, so nobody is writing them now.
    for walked, _, names in os.walk(layout.runs):
        found += _temporary(Path(walked), names)
    for folder in (layout.cache, layout.name_records):
        found += _temporary(folder, names_in(folder))
    return found, references


def _unnamed_versions(layout: Layout, reached: set[str]) -> tuple[set[str], dict[str, str]]:
    """Return the versions that are known to have lost their names, and those that only seem to
    have none, each with the reason.
    """
    present = {name for name in names_in(layout.versions) if is_digest(name)}
    unexplained: dict[str, str] = {}
    for version_id in sorted((present | recorded_ids(layout)) - reached):
        names = read_record(layout, version_id)
        if names:
            unexplained[version_id] = f"its name {names[0]} is not there"
        elif names is None and version_id in present:
            unexplained[version_id] = "nothing on record says that it lost its name"
    return present - reached - unexplained.keys(), unexplained


def _out_of_sight(layout: Layout, unexplained: Mapping[str, str]) -> StorageError:
    version_id, reason = next(iter(unexplained.items()))
    count = len(unexplained)
    some = (
        "1 version has no name that is seen"
        if count == 1
        else (f"{count} versions have no name that is seen")
    )
    return StorageError(
        f"{layout.root}: {some}, so nothing was removed; {version_id[:12]}: {reason}",
        hint=f"bring back what is missing in {layout.runs}; if nothing is, "
        "d2nas gc --everything-unnamed removes them, with --dry-run it lists them",
    )


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
    return ancestry(layout, {reference.id: hint_for(layout, reference) for reference in references})


def ancestry(layout: Layout, hints: Mapping[str, str]) -> set[str]:
    """Return these ids and all that they were made from; ``hints`` says what to do about each.

    Raises ``DamagedArtifactError`` if a manifest on the way cannot be read.
    """
    reached: set[str] = set()
    for first, hint in hints.items():
        waiting = [first]
        while waiting:
            version_id = waiting.pop()
            if version_id in reached:
                continue
            folder = layout.version(version_id)
            values = read_manifest(folder, hint=hint)
            manifest = parse_manifest(values, layout.kinds, what=str(folder), hint=hint)
            reached.add(version_id)
            waiting += manifest.parents.values()
    return reached


def move_aside(layout: Layout, file_system: FileSystem, path: Path) -> Path:
    """Take a version out of its place in one step; returns where it is now.

    Nobody holds the lock of that place, so ``gc`` removes it if the caller cannot.
    """
    aside = layout.staging_folder(f"{REMOVED_PREFIX}{secrets.token_hex(16)}")
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
    if not layout.kinds.is_stage(stage) or kind_of(stage) != STATE:
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
        version_id: str | None
        try:
            version_id = read_reference(place).id
        except DamagedArtifactError:  # what it stood for is told by the records alone
            version_id = next(_ids_on_record(layout, place.name), None)
        if version_id is not None:
            ids.add(version_id)
            remove_name(layout, file_system, version_id, place.name)
        file_system.remove_file(place.path)
    for version_id in sorted(ids & _removable(layout)):
        discard(layout, file_system, layout.version(version_id))
        remove_record(layout, file_system, version_id)
    return [place.name for place in dropped]


def _ids_on_record(layout: Layout, name: str) -> Iterator[str]:
    for version_id in sorted(recorded_ids(layout)):
        if name in (read_record(layout, version_id) or ()):
            yield version_id


def _removable(layout: Layout) -> set[str]:
    """Return the versions that lost their names and are no part of others; none if in doubt."""
    references, damaged = scan(layout)
    if damaged:
        return set()
    try:
        reached = reachable(layout, references)
        unnamed, unexplained = _unnamed_versions(layout, reached)
        if not unnamed:
            return unnamed
        return unnamed - ancestry(layout, unexplained)
    except (DamagedArtifactError, StorageError):
        return set()


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
