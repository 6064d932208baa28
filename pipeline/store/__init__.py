"""The store of versions: whole or absent, never modified, verified at every opening.

``kinds`` is what it holds, ``commit`` the commit protocol, ``fsio`` the only module that changes
the disk, ``manifest`` what an id is computed from, ``references`` the human names,
``name_records`` which names a version has, ``version`` and ``targets`` opening, ``audit``
verifying, ``garbage`` removing, ``locks`` the locks, ``forms`` what is relied on in a version.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from d2nas.errors import ConfigError, StorageError
from d2nas.files.verified_folder import is_digest

from .audit import VerifyReport, verify_store, verify_targets
from .cache import read_cache, write_cache
from .commit import Staging, commit_version
from .fsio import (
    FileSystem,
    is_run_name,
    joined_run_name,
    require_space,
    safe_name,
    safe_run_name,
)
from .garbage import Garbage, collect_garbage, drop_states, find_garbage, retain_states
from .kinds import Kind, Kinds, kind_of, state_of
from .layout import Layout
from .locks import run_lock
from .manifest import FileEntry, Manifest, read_back
from .references import (
    Damage,
    Reference,
    all_places,
    places,
    read_reference,
    scan,
)
from .targets import is_id, resolve
from .version import Version, open_version

__all__ = [
    "Damage",
    "FileEntry",
    "FileSystem",
    "Garbage",
    "Kind",
    "Kinds",
    "Manifest",
    "Reference",
    "Staging",
    "Store",
    "VerifyReport",
    "Version",
    "is_id",
    "is_run_name",
    "joined_run_name",
    "kind_of",
    "safe_name",
    "safe_run_name",
    "state_of",
]


class Store:
    """All versions below one folder, which is made at the first write; of these kinds, by default
    of any.

    Every method may raise ``StorageError`` (the operating system refused) and, where it opens
    something, ``DamagedArtifactError``.
    """

    def __init__(
        self, root: Path, file_system: FileSystem | None = None, kinds: Sequence[Kind] = ()
    ) -> None:
        self.root = Path(os.path.abspath(root))
        self._layout = Layout(self.root, Kinds(kinds))
        self._file_system = file_system or FileSystem()

    # Writing

    def stage(self) -> Staging:
        """Return a new staging folder, to be used in a ``with``; removed unless committed."""
        return Staging(self._layout, self._file_system)

    def commit(
        self,
        staging: Staging,
        *,
        run: str,
        stage: str,
        kind: str,
        key: str,
        parents: Mapping[str, str],
        config: Mapping[str, Any],
        seed: int,
        code_schema: int,
        versions: Mapping[str, str],
        facts: Mapping[str, Any],
        note: Mapping[str, Any],
    ) -> Version:
        """Make what is staged a version and name it ``RUN/STAGE@v(next)``.

        Content that is already there keeps its name. ``note`` (time, host, command, full
        config) stands beside the name and is no part of the id. Raises ``ConfigError`` for the
        run's name, ``BusyError``, and ``ValueError`` or ``TypeError`` for values that are no
        strict JSON or do not fit together.
        """
        safe_run_name(run)
        if not self._layout.kinds.is_stage(stage) or kind != kind_of(stage):
            raise ValueError(f"a version of kind {kind!r} cannot be the stage {stage!r}")
        manifest = read_back(
            Manifest.model_validate(
                {
                    "kind": kind,
                    "key": key,
                    "files": dict(staging.files),
                    "parents": dict(parents),
                    "config": dict(config),
                    "seed": seed,
                    "code_schema": code_schema,
                    "versions": dict(versions),
                    "facts": dict(facts),
                }
            )
        )
        return commit_version(
            self._layout,
            self._file_system,
            staging,
            manifest,
            run=run,
            stage=stage,
            note=_plain(note),
        )

    def try_writing(self, run: str, stage: str) -> None:
        """Raise ``StorageError`` where a version of this stage could not be written or named, or
        its checkpoints: before the time is spent that they take.
        """
        stages = self._layout.kinds.in_order((stage, state_of(stage)))
        names = [self._layout.run(run) / name for name in stages]
        for folder in (self._layout.versions, self._layout.name_records, *names):
            self._file_system.try_writing(folder)

    def require_space(self, num_bytes: int, *, what: str) -> None:
        """Raise ``StorageError`` unless there is room for what ``what`` is going to write."""
        require_space(self.root, num_bytes, what=what)

    # Opening

    def open(self, target: str) -> Version:
        """Open ``RUN/STAGE@vN``, ``RUN/STAGE`` (newest), or an id or 8 and more digits of one.

        Raises ``ConfigError`` if there is none.
        """
        found = resolve(self._layout, target)
        if isinstance(found, str):
            return self.open_id(found)
        reference = read_reference(found)
        return open_version(self._layout, reference.id, reference)

    def open_id(self, version_id: str) -> Version:
        """Open a version by its full id, for example a parent; it has a name if any stands for it.

        Raises ``DamagedArtifactError`` if it is missing, ``ConfigError`` if this is no id,
        ``StorageError`` if the operating system cannot read it, or a name that may be its.
        """
        if not is_digest(version_id):
            raise ConfigError(f"{version_id[:200]!r} is not an id (64 hexadecimal digits)")
        references, broken = scan(self._layout)
        named = [reference for reference in references if reference.id == version_id]
        unreadable = [item for item in broken if item.is_unreadable]
        if unreadable and not named:  # it may be the name of this one
            raise StorageError(unreadable[0].problem, hint="check who may read the store")
        return open_version(self._layout, version_id, named[-1] if named else None)

    def latest(self, run: str, stage: str) -> Version | None:
        """Open the newest version of a stage; None if it has none."""
        known = places(self._layout, run, stage)
        if not known:
            return None
        reference = read_reference(known[-1])
        return open_version(self._layout, reference.id, reference)

    def find(self, run: str, stage: str, key: str) -> Version | None:
        """Open the newest version of a stage that was made for ``key``; None if there is none.

        A damaged one is an error, never passed over.
        """
        for place in reversed(places(self._layout, run, stage)):
            reference = read_reference(place)
            if reference.key == key:
                return open_version(self._layout, reference.id, reference)
        return None

    def references(self, run: str | None = None, stage: str | None = None) -> list[Reference]:
        """Return all references, or a run's, or a stage's: by run, stage and number.

        Raises ``DamagedArtifactError`` if any of them is damaged.
        """
        return [read_reference(place) for place in all_places(self._layout, run, stage)]

    def scan_references(self) -> tuple[list[Reference], list[Damage]]:
        """Return all references that can be read, and those that cannot."""
        return scan(self._layout)

    def verify(self, targets: Sequence[str] = ()) -> VerifyReport:
        """Check the whole store, or ``targets`` and all they were made from.

        Damage is reported, not raised. Raises ``ConfigError`` for an unknown target.
        """
        if targets:
            return verify_targets(self._layout, targets)
        return verify_store(self._layout)

    # Removing

    def retain_states(self, run: str, stage: str, keep: int) -> list[str]:
        """Drop checkpoints older than the newest ``keep`` (at least 1) that verify.

        Of other settings than the newest one's, given up before they finished, the last one stays.
        The folders go too unless something else reaches them. Returns the dropped names.
        """
        return retain_states(self._layout, self._file_system, run, stage, keep)

    def drop_states(self, run: str, stage: str) -> list[str]:
        """Drop all checkpoints of a stage; returns their names."""
        return drop_states(self._layout, self._file_system, run, stage)

    def find_garbage(self, *, everything_unnamed: bool = False) -> list[Garbage]:
        """Return what ``collect_garbage`` would remove; raises as it does."""
        return find_garbage(self._layout, self._file_system, everything_unnamed=everything_unnamed)

    def collect_garbage(self, *, everything_unnamed: bool = False) -> list[Garbage]:
        """Remove what dead writers left and what lost its names; returns what was removed.

        Removes nothing, and raises ``DamagedArtifactError``, if a name is damaged, and
        ``StorageError`` if a version only seems to have no name (its name is on record, but not
        seen, or nothing is on record); ``everything_unnamed`` removes those too.
        """
        return collect_garbage(
            self._layout, self._file_system, everything_unnamed=everything_unnamed
        )

    # Locks and cache

    def lock_run(self, run: str) -> AbstractContextManager[None]:
        """Hold a run alone, in a ``with``. Raises ``BusyError`` naming the holder, at once."""
        return run_lock(self._layout, self._file_system, run)

    def cached(self, name: str, key: Any) -> Any | None:
        """Return the cached value for ``key`` (any JSON); None if absent or damaged."""
        return read_cache(self._layout, name, key)

    def store_cache(self, name: str, key: Any, value: Any) -> None:
        """Cache ``value`` (any JSON) for ``key``."""
        write_cache(self._layout, self._file_system, name, key, value)


def _plain(note: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``note`` as it will be read; bytes of a command line that are no text become '?'."""
    text = json.dumps(dict(note), ensure_ascii=False, allow_nan=False)
    plain: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return plain
