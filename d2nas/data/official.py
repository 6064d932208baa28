"""Official files of data sets: found, checked, and downloaded where they are missing."""

import contextlib
import gzip
import hashlib
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, DamagedArtifactError, StorageError
from .faults import shown
from .sets import DataSet

# The largest official file has 47 MB; what is cut off here fails its checksum.
_MAX_UNZIPPED_BYTES = 2**26
_NETWORK_TIMEOUT_SECONDS = 30.0


def find_official(data_set: DataSet, root: Path) -> dict[str, Path]:
    """Return where each official file lies below ``root``, by its path; missing ones are left out.

    A file whose content has the checksum may also be unzipped, or lie directly in ``root`` (as
    Debian's package installs Fashion-MNIST).
    """
    found = {}
    for path, checksum in data_set.files:
        places = [path]
        if checksum.startswith("sha256-unzipped:"):
            flat = path.rpartition("/")[2]
            places += [path.removesuffix(".gz"), flat, flat.removesuffix(".gz")]
        for place in places:
            if os.path.isfile(root / place):
                found[path] = root / place
                break
    return found


def official_files(
    data_set: DataSet, root: Path, *, is_users: bool, default_root: Path
) -> dict[str, Path]:
    """Return every official file, checked; missing ones are downloaded into ``root`` first, unless
    it is the user's, which may be misspelt, or not theirs.

    Raises ``ConfigError`` for files that are missing, ``DamagedArtifactError`` naming the first
    whose content is not the official one, ``StorageError`` when reading or writing fails.
    """
    files = find_official(data_set, root)
    if len(files) < len(data_set.files):
        if is_users:
            raise _not_there(data_set, root, default_root)
        _download(data_set, root)
        files = find_official(data_set, root)
    for path, checksum in data_set.files:
        if path not in files:
            what = f"{data_set.name}: {path} is not under {shown(root)}"
            raise ConfigError(what, hint=how_to_get(data_set))
        if _checksum(files[path], checksum.partition(":")[0]) != checksum:
            raise _damaged(data_set, files[path])
    return files


def how_to_get(data_set: DataSet) -> str:
    """One line on how to get the official files without a download by d2nas."""
    if data_set.folder is not None:
        return "install the package that brings it again"
    advice = f"--data-root DIR with the official files ({data_set.files[0].path} and so on)"
    return advice if data_set.also_from is None else f"{advice}; {data_set.also_from}"


def hash_file(path: Path, algorithm: str) -> str:
    """Return the hash of a file, hexadecimal. Raises ``StorageError``."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(
                file, lambda: hashlib.new(algorithm, usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error


def _checksum(path: Path, kind: str) -> str:
    if kind != "sha256-unzipped":
        return f"{kind}:{hash_file(path, kind)}"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return f"{kind}:{hashlib.sha256(file.read(_MAX_UNZIPPED_BYTES)).hexdigest()}"
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return f"{kind}:cannot be unzipped"
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error


def _damaged(data_set: DataSet, path: Path) -> DamagedArtifactError:
    hint = "put the official file there; without --data-root it is downloaded once it is deleted"
    return DamagedArtifactError(
        f"{shown(path)}: not the published {data_set.name} file (wrong checksum)",
        hint=hint if data_set.folder is None else how_to_get(data_set),
    )


def _not_there(data_set: DataSet, root: Path, default_root: Path) -> ConfigError:
    """Return the error for a folder that was named and lacks official files.

    It says where they are, if that is above the folder: one names the inner folder easily.
    """
    for parent in list(root.absolute().parents)[:2]:
        if find_official(data_set, parent):
            return ConfigError(
                f"{shown(root)}: a part of the {data_set.name} files, not the folder that holds "
                "them",
                hint=f"give its parent: --data-root {shown(parent)}",
            )
    hint = how_to_get(data_set)
    if data_set.download is not None:
        hint += f"; without --data-root they are downloaded to {shown(default_root)}"
    if not root.is_dir():
        return ConfigError(f"{shown(root)}: no such folder", hint=hint)
    found = find_official(data_set, root)
    missing = [file.path for file in data_set.files if file.path not in found]
    return ConfigError(
        f"{data_set.name}: {len(missing)} of {len(data_set.files)} files are not under "
        f"{shown(root)}, first {missing[0]}",
        hint=hint,
    )


def _download(data_set: DataSet, root: Path) -> None:
    """Fetch the official files; they appear in ``root`` complete or not at all."""
    from http.client import HTTPException  # only now: loading it takes as long as all else here
    from urllib.error import URLError

    if data_set.download is None:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch,
            contextlib.redirect_stdout(sys.stderr),
            _network_timeout(),
        ):
            data_set.download(Path(scratch))
            for path, file in find_official(data_set, Path(scratch)).items():
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    # RuntimeError is what torchvision raises for a failed or damaged download.
    except (URLError, HTTPException, TimeoutError, ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"{data_set.name}: not under {shown(root)}, and the download failed "
            f"({type(error).__name__})",
            hint=how_to_get(data_set),
        ) from error
    except OSError as error:
        raise StorageError(f"{shown(root)}: {error.strerror or error}") from error


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    # torchvision sets none: a host that never answers would stop the run for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
