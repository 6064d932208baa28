"""Records of each version's names: a name out of sight is not a name lost.

A reference that is not found may have been dropped, or may only not be seen: a folder moved aside,
a store copied half, a network file system that answers "no such file" for a moment. So a version
counts as unnamed only where its record is there and is empty. It is written, empty, before the
version gets its place; it gains a name once that is published, and loses it before that is removed.
A version without a record, as older stores hold them, is never taken for unnamed.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from d2nas.errors import DamagedArtifactError
from d2nas.files.strict_json import canonical_json, digest, parse_json
from d2nas.files.verified_folder import is_digest, read_plain_file

from .fsio import FileSystem, is_there
from .layout import Layout, names_in
from .manifest import Digest, Record

SCHEMA: Literal[1] = 1
_MAX_BYTES = 4 * 1024 * 1024
_SUFFIX = ".json"


class _Body(Record):
    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    id: Digest
    names: list[str]


def read_record(layout: Layout, version_id: str) -> tuple[str, ...] | None:
    """Return the names that a version has on record; None if there is no record, or no whole one.

    Raises ``StorageError`` if that cannot be told.
    """
    path = layout.name_record(version_id)
    if not is_there(path):
        return None
    try:
        values = parse_json(read_plain_file(path, max_bytes=_MAX_BYTES), what=str(path))
        body = _Body.model_validate(values["body"])
        if values["digest"] == digest(values["body"]) and body.id == version_id:
            return tuple(body.names)
    except (DamagedArtifactError, ValidationError, KeyError, TypeError, ValueError):
        return None
    return None


def recorded_ids(layout: Layout) -> set[str]:
    """Return the ids of the versions that have a record."""
    names = (name.removesuffix(_SUFFIX) for name in names_in(layout.name_records))
    return {name for name in names if is_digest(name)}


def begin_record(layout: Layout, file_system: FileSystem, version_id: str) -> None:
    """Put on record that a version, which is about to get its place, has no name yet."""
    if read_record(layout, version_id) is None:
        _write(layout, file_system, version_id, ())


def add_name(layout: Layout, file_system: FileSystem, version_id: str, name: str) -> None:
    """Put a published name on record; without a record, what names there were before is unknown."""
    known = read_record(layout, version_id)
    if known is not None and name not in known:
        _write(layout, file_system, version_id, {*known, name})


def remove_name(layout: Layout, file_system: FileSystem, version_id: str, name: str) -> None:
    """Take a name that is about to be removed off the record."""
    known = read_record(layout, version_id)
    if known is not None and name in known:
        _write(layout, file_system, version_id, {*known} - {name})


def remove_record(layout: Layout, file_system: FileSystem, version_id: str) -> None:
    """Remove the record of a version that is gone."""
    if is_there(layout.name_record(version_id)):
        file_system.remove_file(layout.name_record(version_id))


def _write(layout: Layout, file_system: FileSystem, version_id: str, names: Iterable[str]) -> None:
    body: dict[str, Any] = _Body(id=version_id, names=sorted(names)).model_dump(by_alias=True)
    file_system.make_folder(layout.name_records)
    data = canonical_json({"body": body, "digest": digest(body)})
    file_system.replace_file(layout.name_record(version_id), data)
