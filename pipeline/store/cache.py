"""Values that take long to compute and can be computed again: a damaged one counts as absent."""

from pathlib import Path
from typing import Any

from d2nas.errors import DamagedArtifactError, StorageError
from d2nas.files.strict_json import canonical_json, digest, parse_json
from d2nas.files.verified_folder import read_plain_file

from .fsio import FileSystem, safe_name
from .layout import Layout
from .locks import store_lock

_MAX_BYTES = 16 * 1024 * 1024


def read_cache(layout: Layout, name: str, key: Any) -> Any | None:
    """Return the value stored for ``key`` (any JSON) under ``name``; None if there is none."""
    path = _path(layout, name, key)
    try:
        entry = parse_json(read_plain_file(path, max_bytes=_MAX_BYTES), what=str(path))
        if entry["digest"] == digest(entry["body"]) and digest(entry["body"]["key"]) == digest(key):
            return entry["body"]["value"]
    except (DamagedArtifactError, StorageError, KeyError, TypeError, ValueError):
        return None
    return None


def write_cache(layout: Layout, file_system: FileSystem, name: str, key: Any, value: Any) -> None:
    """Store ``value`` (any JSON) for ``key``. Raises ``StorageError`` or ``BusyError``."""
    path = _path(layout, name, key)
    body = {"key": key, "value": value}
    data = canonical_json({"body": body, "digest": digest(body)})
    with store_lock(layout, file_system):  # gc takes half-written files for dead under this lock
        file_system.make_folder(path.parent)
        file_system.replace_file(path, data)


def _path(layout: Layout, name: str, key: Any) -> Path:
    return layout.cache_file(f"{safe_name(name)}-{digest(key)}")
