"""The commit: how files become a version that is whole or absent, whatever fails.

Order on disk: every file written and synced; the manifest last; the staging folder synced; an empty
record of names; one rename to ``versions/<id>``; the parent synced; then one new reference, which
appears whole or not at all, synced; last the name on record. A process that dies at any point
leaves the store as it was, plus at most a staging folder or an unnamed version that ``gc`` removes.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from d2nas.errors import BusyError, DamagedArtifactError, StorageError
from d2nas.files.verified_folder import MANIFEST_NAME, VerifiedFolder, is_file_name, read_verified

from .fsio import FileSystem, is_there
from .garbage import move_aside
from .layout import Layout
from .locks import HeldLock, acquire, staging_lock_name, store_lock
from .manifest import FileEntry, Manifest
from .name_records import add_name, begin_record
from .references import Place, Reference, encode_reference, places, read_reference
from .version import Version, as_version, hint_for


class Staging:
    """A folder of its own for one attempt; gone at the end of the ``with``, unless committed.

    While it is open it holds a lock, so that ``gc`` knows it from one whose writer died.
    """

    def __init__(self, layout: Layout, file_system: FileSystem) -> None:
        self._layout = layout
        self._file_system = file_system
        # Never used again, so a retry cannot meet what a failed attempt left.
        self._name = secrets.token_hex(16)
        self._lock: HeldLock | None = None
        self.folder = layout.staging_folder(self._name)
        self.files: dict[str, FileEntry] = {}

    def write(self, name: str, data: bytes) -> None:
        """Write and sync one file of the version.

        Raises ``StorageError``; ``ValueError`` for a name that a version cannot hold, or holds.
        """
        if not is_file_name(name) or name.lower() in {known.lower() for known in self.files}:
            raise ValueError(f"a version cannot hold a file {name!r}, or holds it already")
        self._file_system.write_file(self.folder / name, data)
        self.files[name] = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def __enter__(self) -> Self:
        # Under the store lock, so that gc never meets the lock's file before it is held.
        with store_lock(self._layout, self._file_system):
            self._lock = acquire(self._lock_file, seconds=0)
            if self._lock is None:
                raise BusyError(f"{self.folder} is in use", hint="try again")
            try:
                self._file_system.make_folder(self.folder)
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # Whatever happened before matters more; gc removes what stays.
            with suppress(StorageError):
                if os.path.lexists(self.folder):
                    self._file_system.remove_tree(self.folder)
        finally:
            self._release()

    @property
    def _lock_file(self) -> Any:
        return self._layout.lock_file(staging_lock_name(self._name))

    def _release(self) -> None:
        if self._lock is None:
            return
        try:
            with suppress(StorageError):
                self._file_system.remove_file(self._lock_file)
        finally:
            self._lock.release()
            self._lock = None


def commit_version(
    layout: Layout,
    file_system: FileSystem,
    staging: Staging,
    manifest: Manifest,
    *,
    run: str,
    stage: str,
    note: dict[str, Any],
) -> Version:
    """Make ``staging`` the version ``manifest`` describes, and give it a name.

    Equal content that is there already is kept, and replaced only if it is damaged. It gets a new
    name only if it has none in this run and stage. Raises ``StorageError`` or ``BusyError``.
    """
    draft = Reference(run, stage, 1, manifest.id, manifest.key, note)
    encode_reference(draft)  # a note that cannot be written fails here, before anything is
    file_system.write_file(staging.folder / MANIFEST_NAME, manifest.to_bytes())
    file_system.sync_folder(staging.folder)
    hint = hint_for(layout, draft)
    staged = read_verified(staging.folder, expected_id=manifest.id, hint=hint)
    with store_lock(layout, file_system):
        content = _put_in_place(layout, file_system, staged)
        reference = _name(layout, file_system, draft)
        add_name(layout, file_system, reference.id, reference.name)
    return as_version(layout, replace(content, hint=hint), reference)


def _put_in_place(
    layout: Layout, file_system: FileSystem, staged: VerifiedFolder
) -> VerifiedFolder:
    target = layout.version(staged.id)
    file_system.make_folder(layout.versions)
    damaged = None
    if not is_there(target):
        begin_record(layout, file_system, staged.id)
    else:
        try:
            present = read_verified(target, expected_id=staged.id)
        except DamagedArtifactError:
            damaged = move_aside(layout, file_system, target)
        else:
            # Who renamed it may have died before this.
            file_system.sync_folder(layout.versions)
            return present
    file_system.rename_folder(staged.folder, target)
    if damaged is not None:
        with suppress(StorageError):
            file_system.remove_tree(damaged)
    return replace(staged, folder=target)


def _name(layout: Layout, file_system: FileSystem, draft: Reference) -> Reference:
    known = places(layout, draft.run, draft.stage)
    for place in reversed(known):
        reference = _readable(place)
        if reference is not None and reference.id == draft.id:
            file_system.sync_folder(place.path.parent)
            return reference
    number = known[-1].number + 1 if known else 1
    while True:
        reference = replace(draft, number=number)
        path = layout.reference_file(draft.run, draft.stage, number)
        file_system.make_folder(path.parent)
        try:
            file_system.publish_file(path, encode_reference(reference))
        except FileExistsError:
            # Only where locks do not work: a number once given is never given again.
            number += 1
        else:
            return reference


def _readable(place: Place) -> Reference | None:
    try:
        return read_reference(place)
    except DamagedArtifactError:
        return None
