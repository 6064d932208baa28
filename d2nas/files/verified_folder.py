"""Opening a version's folder: what is read is exactly what was written, or an error.

The folder's id is the SHA-256 of its ``manifest.json``, and the manifest lists the size and the
SHA-256 of every other file. Nothing is trusted because it looks read-only or was checked earlier.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..errors import DamagedArtifactError, StorageError, system_hint
from .strict_json import MAX_BYTES, canonical_json, parse_json

MANIFEST_NAME = "manifest.json"
DEFAULT_HINT = "copy the folder again from where it was made, or rebuild it with d2nas run"

_ID = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
# What the kernel says when a path is not what the store puts there; anything else (permissions,
# I/O) is the machine's trouble and says nothing about the artifact.
_WRONG_KIND = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})


def is_digest(value: object) -> bool:
    """Whether ``value`` is a SHA-256 in lower-case hexadecimal."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def is_file_name(name: object) -> bool:
    """Whether a version may hold a file of this name beside its manifest."""
    return (
        isinstance(name, str)
        and _FILE_NAME.fullmatch(name) is not None
        and name.lower() != MANIFEST_NAME
    )


@dataclass(frozen=True)
class VerifiedFolder:
    """A version's folder that was whole when it was opened."""

    folder: Path
    id: str
    manifest: dict[str, Any]
    hint: str | None = DEFAULT_HINT

    def read(self, name: str) -> bytes:
        """Return the content of a listed file; the bytes returned are the bytes that were hashed.

        Raises ``DamagedArtifactError`` if the file changed since, or is not listed, and
        ``StorageError`` if the operating system cannot read it.
        """
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise DamagedArtifactError(f"{self.folder}: has no file {name!r}", hint=self.hint)
        with _damage_of(self.folder, self.hint), _opened_folder(self.folder) as descriptor:
            data = _read(name, entry["size"], descriptor)
            if len(data) != entry["size"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise _FoundDamageError(f"{name}: content differs from the manifest")
        return data


def read_verified(
    folder: Path, *, expected_id: str | None = None, hint: str | None = DEFAULT_HINT
) -> VerifiedFolder:
    """Open ``folder`` if it is exactly the version ``expected_id`` (else: that its name says).

    Checks the manifest against the id, and the folder against the manifest: every listed file,
    no other, each a plain file with no second name, size and SHA-256 right. Raises
    ``DamagedArtifactError`` naming file and folder, with ``hint``, also when the folder is
    missing; ``StorageError`` if the operating system cannot read it.
    """
    folder = Path(os.path.abspath(folder))
    wanted = folder.name if expected_id is None else expected_id
    with _damage_of(folder, hint), _opened_folder(folder) as descriptor:
        manifest = _verified_manifest(wanted, descriptor)
        _check_listing(manifest["files"], descriptor)
        for name, entry in manifest["files"].items():
            _check_file(name, entry, descriptor)
    return VerifiedFolder(folder=folder, id=wanted, manifest=manifest, hint=hint)


def read_manifest(folder: Path, *, hint: str | None = DEFAULT_HINT) -> dict[str, Any]:
    """Return the manifest of a folder named by its id, checked against it; no other file is read.

    For walking parents, where the files' content does not matter. Raises as ``read_verified``.
    """
    folder = Path(os.path.abspath(folder))
    with _damage_of(folder, hint), _opened_folder(folder) as descriptor:
        return _verified_manifest(folder.name, descriptor)


def read_plain_file(
    path: Path, *, max_bytes: int, hint: str | None = None, max_links: int = 2
) -> bytes:
    """Return the content of a small plain file; links, devices and larger files are refused.

    ``max_links`` is how many names it may have: two where a reference is published as a second
    name of its temporary file. Raises ``DamagedArtifactError`` (also when it is missing) or
    ``StorageError``.
    """
    with (
        _damage_of(path.parent, hint),
        _opened_file(str(path), None, max_links=max_links) as file,
    ):
        size = os.fstat(file.fileno()).st_size
        # Before it is read, and once more: it may have grown since.
        data = b"" if size > max_bytes else file.read(size + 1)
        if max(size, len(data)) > max_bytes:
            raise _FoundDamageError(f"{path.name}: larger than {max_bytes} bytes")
    return data


class _FoundDamageError(Exception):
    """Damage inside a folder; becomes an error that names the folder."""


@contextmanager
def _damage_of(folder: Path, hint: str | None) -> Iterator[None]:
    try:
        yield
    except _FoundDamageError as problem:
        raise DamagedArtifactError(f"{folder}: {problem}", hint=hint) from None
    except OSError as error:
        raise StorageError(
            f"cannot read {folder}: {error.strerror or error}",
            hint=system_hint(error, "check the disk and who may read the store"),
        ) from error


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    try:
        kind = os.lstat(folder).st_mode
        if not stat.S_ISDIR(kind):
            raise _FoundDamageError(
                "is a symbolic link" if stat.S_ISLNK(kind) else "is not a folder"
            )
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _WRONG_KIND:
            raise _FoundDamageError("is missing, or is not a folder") from None
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _opened_file(
    path: str, folder_descriptor: int | None, *, max_links: int
) -> Iterator[BufferedReader]:
    # Relative to the opened folder, so that nobody can put another folder in its place meanwhile.
    # Non-blocking, so that a named pipe cannot make the reader wait.
    name = os.path.basename(path)
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder_descriptor
        )
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise _FoundDamageError(f"{name}: is missing") from None
        if error.errno in _WRONG_KIND:
            raise _FoundDamageError(
                f"{name}: is a link or special file, not a plain file"
            ) from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _FoundDamageError(f"{name}: is not a plain file")
        if status.st_nlink > max_links:
            raise _FoundDamageError(f"{name}: is a hard link, another name can change it")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _read(path: str, max_bytes: int, folder_descriptor: int) -> bytes:
    """Read at most ``max_bytes`` and one more, so that the caller sees a file that is larger."""
    with _opened_file(path, folder_descriptor, max_links=1) as file:
        return file.read(min(max_bytes, os.fstat(file.fileno()).st_size) + 1)


def _verified_manifest(wanted: str, folder_descriptor: int) -> dict[str, Any]:
    if not is_digest(wanted):
        raise _FoundDamageError("the folder's name is not an id (64 hexadecimal digits)")
    data = _read(MANIFEST_NAME, MAX_BYTES, folder_descriptor)
    actual = hashlib.sha256(data).hexdigest()
    if actual != wanted:
        raise _FoundDamageError(f"{MANIFEST_NAME}: its SHA-256 is {actual}, not the version's id")
    return _parse_manifest(data)


def _parse_manifest(data: bytes) -> dict[str, Any]:
    try:
        manifest = parse_json(data, what=MANIFEST_NAME)
        canonical = canonical_json(manifest)
    except DamagedArtifactError as error:
        raise _FoundDamageError(str(error)) from None
    except ValueError as error:
        raise _FoundDamageError(f"{MANIFEST_NAME}: {error}") from None
    if canonical != data:
        raise _FoundDamageError(f"{MANIFEST_NAME}: is not in canonical form")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise _FoundDamageError(f"{MANIFEST_NAME}: lists no files")
    names: set[str] = set()
    for name, entry in manifest["files"].items():
        if not is_file_name(name):
            raise _FoundDamageError(f"{MANIFEST_NAME}: lists a forbidden file name {name!r}")
        if name.lower() in names:
            raise _FoundDamageError(
                f"{MANIFEST_NAME}: {name} is listed twice, in upper and lower case"
            )
        names.add(name.lower())
        if (
            not isinstance(entry, dict)
            or entry.keys() != {"size", "sha256"}
            or type(entry["size"]) is not int
            or entry["size"] < 0
            or not is_digest(entry["sha256"])
        ):
            raise _FoundDamageError(f"{MANIFEST_NAME}: no size and SHA-256 for {name}")
    return manifest


def _check_listing(files: dict[str, Any], descriptor: int) -> None:
    present = set(os.listdir(descriptor)) - {MANIFEST_NAME}
    missing = sorted(files.keys() - present)
    if missing:
        raise _FoundDamageError(f"{missing[0]}: is missing")
    extra = sorted(present - files.keys())
    if extra:
        raise _FoundDamageError(f"{extra[0]!r}: is not listed in the manifest")


def _check_file(name: str, entry: dict[str, Any], descriptor: int) -> None:
    with _opened_file(name, descriptor, max_links=1) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry["size"]:
            raise _FoundDamageError(f"{name}: {size} bytes, the manifest says {entry['size']}")
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise _FoundDamageError(f"{name}: SHA-256 differs from the manifest")
