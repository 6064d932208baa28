"""Sources of images: where a data set lies, whether it is there, and the digest of its content.

Imports neither torch nor torchvision: a run that has nothing to do asks only for the digest, and
the digest must not cost seconds.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..config import DataConfig
from ..config.registry import data_sets
from ..errors import ConfigError, StorageError
from ..files import strict_json
from .faults import reason_of, shown
from .folders import LAYOUT_HINT, FolderListing, find_images
from .hub import hub_manifest, is_hub
from .image_writer import remarks_of
from .manifests import is_manifest, read_manifest
from .official import find_official, hash_file, how_to_get
from .sets import Arrays, DataSet

_THREADS = 8
_FILES_AT_ONCE = 256


class DigestCache(Protocol):
    """Remembers the SHA-256 of files, and why one cannot be decoded; keys are opaque and change
    when a file does.
    """

    def get(self, key: str) -> str | None:
        """Return what is stored for ``key``, or None."""

    def set(self, key: str, value: str) -> None:
        """Store what was found out about the file that ``key`` stands for."""


@dataclass(frozen=True)
class Status:
    """Whether a data set can be read without a download; ``advice`` is None when it can."""

    name: str
    present: bool
    where: str
    advice: str | None


def data_root(config: DataConfig, default_root: Path) -> Path:
    """Return the folder of the configured data set's files, or its manifest: the one that it comes
    with, else that ``config`` names, else ``default_root``.

    A data set for ``datasets`` is fetched if it is not there: its manifest is returned. Raises
    ``ConfigError`` where that cannot be, and where there is no default place and none is given.
    """
    data_set = data_sets.find(config.name)
    if data_set.folder is not None:
        return data_set.folder
    if config.root is None:
        if data_set.is_folder:
            raise ConfigError(
                f"data.name={config.name} needs data.root", hint="name the folder with --data-root"
            )
        return default_root
    if is_hub(config.root):
        if not data_set.is_folder:
            hint = "data.name=folder reads others"
            raise ConfigError(f"data.name={config.name} has files of its own, not hf:", hint=hint)
        return hub_manifest(config.root, default_root)
    try:
        return Path(config.root).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"data.root={config.root!r}: {error}") from None


def content_digest(
    config: DataConfig,
    *,
    default_root: Path,
    cache: DigestCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """SHA-256 (hexadecimal) of the data set's content, the same on every machine.

    Image files: the path below the root and the SHA-256 of every image that is used
    (``list_usable_images``), and where a manifest says other classes or parts than a folder of
    the same paths would have, these too; ``cache`` spares reading files whose path, size and times
    have not changed, and ``progress`` is told now and then how many of how many are done, where
    files are read.
    Other sets: see ``arrays_digest``.

    Raises ``ConfigError`` where ``list_config`` does, ``StorageError`` when a file is unreadable.
    """
    data_set = data_sets.find(config.name)
    if not data_set.is_folder:
        return arrays_digest(data_set)
    listing, hashes = content_hashes(
        config, default_root=default_root, cache=cache, progress=progress
    )
    return listing_digest(zip(listing.content_names(), hashes, strict=True))


def content_hashes(
    config: DataConfig,
    *,
    default_root: Path,
    cache: DigestCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[FolderListing, list[str]]:
    """Return the image files that are used, and the SHA-256 of each; arguments and errors as of
    ``content_digest``.
    """
    listing = list_usable_images(config, default_root, cache=cache, progress=progress)
    paths = [listing.root / file.path for file in listing.files]
    return listing, list(_file_hashes(paths, cache, progress))


def arrays_digest(data_set: DataSet, arrays: Arrays | None = None) -> str:
    """Digest of the content of a set that is read into arrays.

    That of official files follows from their checksums, which are checked when the files are read;
    so it is known, and the same, before anything was downloaded. A set without files is read,
    unless its ``arrays`` are given. A ``revision`` other than 1 changes it.
    """
    content = _arrays_digest(data_set, arrays)
    if data_set.revision == 1:
        return content
    return strict_json.digest({"content": content, "revision": data_set.revision})


def _arrays_digest(data_set: DataSet, arrays: Arrays | None) -> str:
    if data_set.digest is not None:
        return data_set.digest
    if data_set.files or data_set.read is None:
        return strict_json.digest({"data": data_set.name, "files": data_set.files})
    names, images, labels = arrays or data_set.read({})
    content = (images.tobytes(), labels.tobytes())
    hashes = [hashlib.sha256(part).hexdigest() for part in content]
    return strict_json.digest({"data": data_set.name, "classes": names, "content": hashes})


def listing_digest(files: Iterable[tuple[str, str]]) -> str:
    """Digest of pairs, of ``content_names`` and the SHA-256 of that file, whatever their order."""
    total = hashlib.sha256(b"d2nas image folder 1\n")
    for name, file_hash in sorted(files):
        total.update(os.fsencode(name) + b"\0" + file_hash.encode() + b"\n")
    return total.hexdigest()


def on_disk(name: str, root: Path) -> Status:
    """Tell whether the data set ``name`` is there, reading directories only.

    ``root`` is the data root: for folders of pictures the user's own folder. Raises ``ConfigError``
    for an unknown name.
    """
    data_set = data_sets.find(name)
    if data_set.is_any_folder:
        try:
            list_images(root)
            return Status(name, True, str(root), None)
        except (ConfigError, StorageError):
            return Status(name, False, str(root), f"--data-root DIR; {LAYOUT_HINT}")
    if data_set.is_folder:
        present = os.path.isdir(root / "train") and os.path.isdir(root / "val")
        advice = "--data-root DIR with train/<class>/* and val/<class>/*"
        return Status(name, present, str(root), None if present else advice)
    if not data_set.files:
        return Status(name, True, "needs no files", None)
    root = data_set.folder or root
    present = len(find_official(data_set, root)) == len(data_set.files)
    where = (root / data_set.files[0].path).parent
    return Status(name, present, str(where), None if present else how_to_get(data_set))


def list_images(root: Path) -> FolderListing:
    """List the images that a manifest at ``root`` names, else those of a folder of classes; raises
    as ``read_manifest`` or ``find_images``.
    """
    return read_manifest(root) if is_manifest(root) else find_images(root)


def list_config(config: DataConfig, default_root: Path) -> FolderListing:
    """``list_images`` for the configured data set of image files.

    Raises ``ConfigError`` also when one that needs splits has no val/ or test/.
    """
    listing = list_images(data_root(config, default_root))
    if config.root is not None and is_hub(config.root):
        listing = replace(listing, remarks=listing.remarks + remarks_of(listing.root))
    if data_sets.find(config.name).needs_splits and not listing.validation and not listing.test:
        raise ConfigError(
            f"{shown(listing.root)}: {config.name} needs train/<class>/* and val/<class>/*",
            hint="or use data.name=folder for one folder per class",
        )
    return listing


def list_usable_images(
    config: DataConfig,
    default_root: Path,
    *,
    cache: DigestCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FolderListing:
    """``list_config`` without the images that cannot be decoded, where ``data.on_error`` is skip.

    All images are decoded for that, once, if there is a ``cache``. Raises ``ConfigError`` also
    where too few are left of a class.
    """
    listing = list_config(config, default_root)
    if config.on_error == "stop":
        return listing
    paths = [file.path for file in listing.files]
    reasons = _why_damaged(listing.root, paths, cache, progress)
    found = zip(paths, reasons, strict=True)
    return listing.without({path: reason for path, reason in found if reason})


def _why_damaged(
    root: Path,
    paths: Sequence[str],
    cache: DigestCache | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[str]:
    """Yield for each image why it cannot be decoded; nothing where it can."""
    import PIL

    from .decoding import check_decodes, read_each, strict_pillow

    def key_of(path: str) -> str:
        key = f"decodes with Pillow {PIL.__version__}\0{_cache_key(root / path)}"
        return hashlib.sha256(key.encode()).hexdigest()

    for start in range(0, len(paths), _FILES_AT_ONCE):
        part = paths[start : start + _FILES_AT_ONCE]
        keys = [key_of(path) for path in part]
        known = [None if cache is None else cache.get(key) for key in keys]
        unknown = [index for index, reason in enumerate(known) if reason is None]
        with strict_pillow():
            found = list(read_each(root, [part[index] for index in unknown], check_decodes))
        for index, error in zip(unknown, found, strict=True):
            reason = "" if error is None else reason_of(error, root / part[index])
            known[index] = reason
            # As with hashes: what changed meanwhile must not be remembered in either state.
            if cache is not None and key_of(part[index]) == keys[index]:
                cache.set(keys[index], reason)
        if unknown and progress is not None:
            progress(start + len(part), len(paths))
        yield from (reason or "" for reason in known)


def _file_hashes(
    paths: Sequence[Path],
    cache: DigestCache | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[str]:
    """Yield the SHA-256 of each file, in order; several are read at once."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        # Some at a time: what is done is remembered even if the rest is not waited for.
        for start in range(0, len(paths), _FILES_AT_ONCE):
            part = paths[start : start + _FILES_AT_ONCE]
            keys = list(threads.map(_cache_key, part)) if cache is not None else [""] * len(part)
            known = [None if cache is None else cache.get(key) for key in keys]
            unknown = [index for index, known_hash in enumerate(known) if known_hash is None]
            found = threads.map(lambda index, part=part: hash_file(part[index], "sha256"), unknown)
            for index, found_hash in zip(unknown, found, strict=True):
                known[index] = found_hash
                # A file that changed while it was read must not be remembered in either state.
                if cache is not None and _cache_key(part[index]) == keys[index]:
                    cache.set(keys[index], found_hash)
            if unknown and progress is not None:
                progress(start + len(part), len(paths))
            yield from filter(None, known)


def _cache_key(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error
    # The time of change too: it can't be set back, as the time of modification can.
    state = f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
    return hashlib.sha256(os.fsencode(path.absolute()) + state.encode()).hexdigest()


DEFAULT_DATA_ROOT = Path("~/.cache/d2nas/data")
DATA_VARIABLE = "D2NAS_DATA"


def data_folder() -> Path:
    """Return the folder of downloaded data sets where ``data.root`` names none: what the variable
    ``D2NAS_DATA`` says, else one in the user's cache.

    Raises ``ConfigError`` for a user without a home folder.
    """
    given = os.environ.get(DATA_VARIABLE)
    if given:
        return Path(given).expanduser()
    try:
        return DEFAULT_DATA_ROOT.expanduser()
    except RuntimeError:  # HOME is not set, and the user is not in the system's list
        raise ConfigError(
            f"there is no home folder for {DEFAULT_DATA_ROOT}",
            hint="set HOME, or name a folder with --data-root",
        ) from None
