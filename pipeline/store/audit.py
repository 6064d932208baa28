"""Checking a whole store, or the ancestry of some versions."""

from collections.abc import Sequence
from dataclasses import dataclass

from d2nas.errors import DamagedArtifactError, StorageError
from d2nas.files.verified_folder import is_digest

from .fsio import is_there
from .layout import Layout, names_in
from .references import Damage, Reference, read_reference, scan, unexpected_entries
from .targets import resolve
from .version import Version, as_version, open_version


@dataclass(frozen=True)
class VerifyReport:
    """Findings of an audit: ``checked`` counts versions, present or missing."""

    checked: int
    damaged: list[Damage]


def verify_store(layout: Layout) -> VerifyReport:
    """Check every version, reference and parent, also what no name reaches.

    Takes no lock, so that hashing keeps no run waiting: what another process removes or adds
    meanwhile is no damage.
    """
    named = _named(layout)
    damaged: list[Damage] = []
    checked = 0
    for name in names_in(layout.versions):
        if name.startswith("."):
            continue
        path = layout.versions / name
        if is_digest(name):
            found = _check(layout, name, named.get(name, []))
        else:
            found = [Damage(repr(name), path, f"{layout.versions}: {name!r} is not a version")]
        if is_there(path):  # else: removed meanwhile
            checked += 1
            damaged += found
    missing, broken = _check_references(layout)
    return VerifyReport(
        checked + len(missing), damaged + missing + broken + unexpected_entries(layout)
    )


def _named(layout: Layout) -> dict[str, list[Reference]]:
    """Return the readable references to each id."""
    named: dict[str, list[Reference]] = {}
    for reference in scan(layout)[0]:
        named.setdefault(reference.id, []).append(reference)
    return named


def _check_references(layout: Layout) -> tuple[list[Damage], list[Damage]]:
    """Return the references to missing versions, and the references that cannot be read."""
    # Read again, after the versions: a name is removed before its version, and given after.
    references, broken = scan(layout)
    missing: dict[str, Damage] = {}
    for reference in references:
        folder = layout.version(reference.id)
        if is_there(folder):
            continue
        path = layout.reference_file(reference.run, reference.stage, reference.number)
        if is_there(path):
            missing[reference.id] = Damage(reference.name, folder, f"{folder}: is missing")
    return list(missing.values()), [item for item in broken if is_there(item.path)]


def verify_targets(layout: Layout, targets: Sequence[str]) -> VerifyReport:
    """Check the versions that ``targets`` name, and all they were made from.

    Raises ``ConfigError`` for an unknown target.
    """
    named = _named(layout)
    damaged: list[Damage] = []
    waiting: list[tuple[str, list[Reference]]] = []
    for target in targets:
        place = resolve(layout, target)
        if isinstance(place, str):
            waiting.append((place, named.get(place, [])))
            continue
        try:
            reference = read_reference(place)
        except (DamagedArtifactError, StorageError) as error:
            damaged.append(Damage.of(place.name, place.path, error))
        else:
            waiting.append((reference.id, [reference]))
    checked: set[str] = set()
    while waiting:
        version_id, references = waiting.pop(0)
        if version_id in checked:
            continue
        checked.add(version_id)
        opened = _open(layout, version_id, references)
        if isinstance(opened, Version):
            parents = opened.manifest.parents.values()
            waiting += [(parent, named.get(parent, [])) for parent in parents]
        else:
            damaged += opened
    return VerifyReport(len(checked), damaged)


def _check(layout: Layout, version_id: str, references: list[Reference]) -> list[Damage]:
    version = _open(layout, version_id, references)
    if not isinstance(version, Version):
        return version
    return [
        Damage(
            version.reference or version.id,
            version.path,
            f"{version.path}: its parent {role} ({parent}) is missing",
        )
        for role, parent in version.manifest.parents.items()
        if not is_there(layout.version(parent))
    ]


def _open(layout: Layout, version_id: str, references: list[Reference]) -> Version | list[Damage]:
    """Open a version by the newest of its names; the other names must fit it too."""
    newest = references[-1] if references else None
    name = version_id if newest is None else newest.name
    try:
        version = open_version(layout, version_id, newest)
        for reference in references[:-1]:
            name = reference.name
            as_version(layout, version.content, reference)
    except (DamagedArtifactError, StorageError) as error:
        return [Damage.of(name, layout.versions / version_id, error)]
    return version
