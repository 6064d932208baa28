"""The only module of the store that writes, renames, syncs or deletes.

Every change to the disk is one call of ``FileSystem._operation``: the tests fail each of them in
turn, with a full disk, an I/O error, a crash and a torn write.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from d2nas.errors import ConfigError, DamagedArtifactError, StorageError, system_hint
from d2nas.files.strict_json import digest

TEMPORARY_PREFIX = ".tmp-"

_SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_RUN_NAME = 64
_RUN_NAME = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{_MAX_RUN_NAME - 1}}}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def is_safe_name(name: str) -> bool:
    """Whether ``name`` can be one part of a path."""
    return _SAFE_NAME.fullmatch(name) is not None


def safe_name(name: str, *, what: str = "name") -> str:
    """Return ``name`` if it can be one part of a path; ``ConfigError`` if not."""
    if not is_safe_name(name):
        raise ConfigError(
            f"{what} {name!r} cannot be used",
            hint="use 1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or digit",
        )
    return name


def is_run_name(name: str) -> bool:
    """Whether a run can have this name."""
    return _RUN_NAME.fullmatch(name) is not None


def joined_run_name(*parts: str) -> str:
    """Return a name of parts that a run can have; what is too long ends in a digest instead."""
    name = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    if len(name) <= _MAX_RUN_NAME:
        return name
    return f"{name[: _MAX_RUN_NAME - 9]}-{digest([*parts])[:8]}"


def safe_run_name(name: str) -> str:
    """Return ``name`` if a run can have it; ``ConfigError`` if not."""
    if not is_run_name(name):
        raise ConfigError(
            f"run name {name!r} cannot be used",
            hint="use 1 to 64 of a-z, 0-9 and '-', the first a letter or digit",
        )
    return name


def inside(root: Path, *parts: str) -> Path:
    """Return the path ``parts`` below ``root``, which must not lead out of it.

    A link on the way is refused; the last part may be one, because whoever opens it refuses it.
    Raises ``DamagedArtifactError``.
    """
    path = root
    for number, part in enumerate(parts):
        if part in ("", ".", "..") or "/" in part:
            raise ValueError(f"{part!r} is not one part of a path")
        if number and os.path.islink(path):
            raise DamagedArtifactError(
                f"{path}: is a symbolic link, and could lead out of the store",
                hint="put a folder in the place of that link",
            )
        path = path / part
    return path


def is_there(path: Path) -> bool:
    """Whether there is something at ``path``, a link included.

    Its absence must be so in the listing of its folder too, for whatever is concluded from it.
    Raises ``StorageError`` if that cannot be told, or if both contradict each other.
    """
    try:
        os.lstat(path)
    except FileNotFoundError as error:
        contradiction = error
    except OSError as error:
        raise storage_error(error, "look at", path) from error
    else:
        return True
    try:
        listed = path.name in os.listdir(path.parent)
    except FileNotFoundError:
        listed = is_there(path.parent)
    except OSError as error:
        raise storage_error(error, "list", path.parent) from error
    if listed and not os.path.lexists(path):
        raise storage_error(contradiction, "look at", path)
    return listed


def open_lock_file(path: Path) -> int:
    """Open the file of a lock, made where there is none; returns its descriptor.

    It is neither emptied nor removed: whoever waits has the same file open. Raises ``OSError``, and
    ``StorageError`` where it may not be opened.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except PermissionError as error:  # else it would look like a lock that is held
        raise storage_error(error, "lock", path) from error


def storage_error(error: OSError, action: str, path: Path) -> StorageError:
    """Return the error that says what the operating system refused, and what to do."""
    if error.errno in _FULL:
        problem, hint = (
            "no space left on the disk",
            f"{_free_space(path)}; free some, or use another disk",
        )
    elif error.errno in _DENIED:
        problem, hint = (
            (error.strerror or "permission denied").lower(),
            "check who owns the folder, or give another one",
        )
    else:
        problem = (error.strerror or str(error)).lower()
        hint = system_hint(error, "check the disk, or give a folder on another one")
    return StorageError(f"cannot {action} {path}: {problem}", hint=hint)


def free_bytes(path: Path) -> int | None:
    """Return the free bytes where ``path`` is, or will be; None where that cannot be told."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def _free_space(path: Path) -> str:
    free = free_bytes(path)
    return "free space unknown" if free is None else f"{_mebibytes(free)} are free there"


def require_space(root: Path, num_bytes: int, *, what: str) -> None:
    """Raise ``StorageError`` unless ``num_bytes`` are free in the store at ``root``."""
    free = free_bytes(root)
    if free is not None and free < num_bytes:
        raise StorageError(
            f"{what} will write {_mebibytes(num_bytes)} to {root}, {_mebibytes(free)} are free",
            hint="free some, d2nas gc removes leftovers, or give another folder with --store",
        )


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


@contextmanager
def _naming(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, action, path) from error


class FileSystem:
    """Durable changes to the disk; each method is done and synced, or raises ``StorageError``.

    A failed sync is never tried again: the second call can succeed with the data gone.
    """

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        """Do one change. All changes pass here, so that a test can refuse any of them."""
        action()

    def _write(self, descriptor: int, data: bytes) -> None:
        """Write all of ``data``. Apart, so that a test can write a part of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def make_folder(self, folder: Path) -> None:
        """Make ``folder`` and its missing parents, each synced in its parent; may exist."""
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            with _naming("make the folder", path):
                try:
                    self._operation("mkdir", path, partial(os.mkdir, path))
                except FileExistsError:
                    if not os.path.isdir(path):  # else: another process was faster
                        raise
            self.sync_folder(path.parent)

    def try_writing(self, folder: Path) -> None:
        """Write a file in ``folder``, or where it will be made, and remove it.

        For what takes long and writes at its end: an error is found before. Nothing stays.
        """
        place = folder
        while not self._is_there_to_try(place):
            place = place.parent
        with _naming("write in", place):
            if not os.path.isdir(place):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
            probe = place / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
            try:
                self._write_new(probe, b"d2nas\n")
            finally:
                with suppress(OSError):  # gc removes what is left here
                    if os.path.lexists(probe):
                        self._unlink(probe)

    def _is_there_to_try(self, path: Path) -> bool:
        with _naming("write in", path):
            try:
                os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def try_file(self, path: Path) -> None:
        """Find out as ``try_writing`` does whether ``replace_file`` could write ``path``."""
        with _naming("write", path):
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            os.stat(path.parent)  # ``replace_file`` makes no folder
        self.try_writing(path.parent)

    def write_file(self, path: Path, data: bytes) -> None:
        """Write a new file and sync it; the folder is left to ``sync_folder``."""
        with _naming("write", path):
            self._write_new(path, data)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in ``folder`` durable."""
        with _naming("sync", folder):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._operation("sync folder", folder, lambda: os.fsync(descriptor))
            finally:
                os.close(descriptor)

    def rename_folder(self, source: Path, target: Path) -> None:
        """Rename in one step and sync the target's parent; ``target`` must not exist."""
        with _naming("rename to", target):
            # The kernel would put a folder in the place of an empty one.
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, "exists already", str(target))
            self._operation("rename", target, lambda: os.rename(source, target))
        self.sync_folder(target.parent)

    def replace_file(self, path: Path, data: bytes) -> None:
        """Give ``path`` new content in one step: a reader sees the old or the new, whole."""
        with self._temporary_file(path, data) as temporary, _naming("replace", path):
            self._operation("replace", path, lambda: os.replace(temporary, path))
        self.sync_folder(path.parent)

    def publish_file(self, path: Path, data: bytes) -> None:
        """Make a new file that appears in one step, whole, or ``FileExistsError``.

        Unlike a rename, the hard link this is done with never takes the place of another file.
        """
        with self._temporary_file(path, data) as temporary:
            try:
                self._operation("link", path, lambda: os.link(temporary, path))
            except FileExistsError:
                raise
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise StorageError(
                        f"cannot write {path}: this file system has no hard links",
                        hint="put the store on a local disk with --store",
                    ) from error
                raise storage_error(error, "write", path) from error
        self.sync_folder(path.parent)

    def remove_file(self, path: Path) -> None:
        """Remove a file and sync its folder; may be gone already."""
        with _naming("remove", path):
            self._unlink(path)
        self.sync_folder(path.parent)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with all that is in it; links are removed, not followed.

        Not atomic: whatever must be whole or absent is renamed away first.
        """
        with _naming("remove", path):
            self._remove_below(path)

    def _remove_below(self, path: Path) -> None:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            self._unlink(path)
            return
        for child in sorted(path.iterdir()):
            self._remove_below(child)
        self._operation("rmdir", path, lambda: os.rmdir(path))

    def _unlink(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            self._operation("unlink", path, lambda: os.unlink(path))

    def _write_new(self, path: Path, data: bytes) -> None:
        descriptor = -1

        def create() -> None:
            nonlocal descriptor
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o666)

        self._operation("create", path, create)
        try:
            self._operation("write", path, lambda: self._write(descriptor, data))
            self._operation("sync file", path, lambda: os.fsync(descriptor))
        finally:
            os.close(descriptor)

    @contextmanager
    def _temporary_file(self, path: Path, data: bytes) -> Iterator[Path]:
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        try:
            with _naming("write", path):
                self._write_new(temporary, data)
            yield temporary
        finally:
            # The error in flight matters more; gc removes what is left here.
            with suppress(OSError):
                if os.path.lexists(temporary):  # else: it has its name now
                    self._unlink(temporary)
