"""Data sets: names, official files with checksums, folders, and the digest of the content.

Imports neither torch nor torchvision nor scikit-learn: a run that has nothing to do asks only for
the digest, and the digest must not cost seconds.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ..config import DATA_NAMES, DataConfig
from ..errors import ConfigError, DamagedArtifactError, StorageError
from ..files import strict_json
from .faults import reason_of, shown
from .folders import LAYOUT_HINT, FolderListing, ImageFile, find_images

__all__ = [
    "PUBLISHED",
    "DigestCache",
    "FolderListing",
    "ImageFile",
    "PublishedFile",
    "Status",
    "check_md5_files",
    "content_digest",
    "damaged_file",
    "data_root",
    "digits_file",
    "find_images",
    "find_published",
    "how_to_get",
    "list_config",
    "listing_digest",
    "not_there",
    "on_disk",
    "published_digest",
    "shown",
    "usable_images",
]


class PublishedFile(NamedTuple):
    """One official file: its place under the root as torchvision lays it out, and its checksum.

    ``checksum`` is ``md5:`` of the file, or ``sha256-unzipped:`` of its content, which holds
    whatever program wrote the gzip container.
    """

    path: str
    checksum: str


_FASHION_MNIST = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_CIFAR10 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CIFAR100 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
_SVHN = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}

PUBLISHED: dict[str, tuple[PublishedFile, ...]] = {
    "fashion-mnist": tuple(
        PublishedFile(f"FashionMNIST/raw/{name}.gz", f"sha256-unzipped:{checksum}")
        for name, checksum in _FASHION_MNIST.items()
    ),
    "cifar10": tuple(
        PublishedFile(f"cifar-10-batches-py/{name}", f"md5:{checksum}")
        for name, checksum in _CIFAR10.items()
    ),
    "cifar100": tuple(
        PublishedFile(f"cifar-100-python/{name}", f"md5:{checksum}")
        for name, checksum in _CIFAR100.items()
    ),
    "svhn": tuple(PublishedFile(name, f"md5:{checksum}") for name, checksum in _SVHN.items()),
}


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
    """Return the folder that ``config`` names, else ``default_root``.

    Raises ``ConfigError`` where the data set has no default place and none is given.
    """
    if config.root is None:
        if config.name in ("folder", "imagenet"):
            raise ConfigError(
                f"data.name={config.name} needs data.root", hint="name the folder with --data-root"
            )
        return default_root
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

    digits: the bytes of scikit-learn's file. Folders: the path below the root and the SHA-256 of
    every image that is used (``usable_images``); ``cache`` spares reading files whose path, size
    and times have not changed, and ``progress`` is told now and then how many of how many are
    done, where files are read. Published sets: their published checksums, which are checked when
    the files are read; so the digest is known, and the same, before anything was downloaded.

    Raises ``ConfigError`` where ``find_images`` does, ``StorageError`` when a file is unreadable.
    """
    if config.name == "digits":
        return hashlib.sha256(_read_bytes(digits_file())).hexdigest()
    if config.name in PUBLISHED:
        return published_digest(config.name)
    listing = usable_images(config, default_root, cache=cache, progress=progress)
    hashes = _file_hashes([listing.root / file.path for file in listing.files], cache, progress)
    return listing_digest(zip((file.path for file in listing.files), hashes, strict=True))


def published_digest(name: str) -> str:
    """Digest of a published data set's content, from its published checksums."""
    return strict_json.digest({"data": name, "files": PUBLISHED[name]})


def listing_digest(files: Iterable[tuple[str, str]]) -> str:
    """Digest of (relative path, SHA-256) pairs, whatever their order."""
    total = hashlib.sha256(b"d2nas image folder 1\n")
    for path, file_hash in sorted(files):
        total.update(os.fsencode(path) + b"\0" + file_hash.encode() + b"\n")
    return total.hexdigest()


def digits_file() -> Path:
    """Return the digits file that comes with scikit-learn, without importing scikit-learn.

    Raises ``ConfigError`` when scikit-learn or its file is missing.
    """
    spec = importlib.util.find_spec("sklearn")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(package, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    raise ConfigError("digits: scikit-learn is not installed", hint="pip install scikit-learn")


def find_published(name: str, root: Path) -> dict[str, Path]:
    """Return where each official file of a published data set lies; missing ones are left out.

    Keys are the paths in ``PUBLISHED``. Fashion-MNIST's files may also lie directly in ``root``
    (as Debian's package installs them), and any of its files may be unzipped.
    """
    found = {}
    for path, checksum in PUBLISHED[name]:
        places = [path]
        if checksum.startswith("sha256-unzipped:"):
            flat = path.rpartition("/")[2]
            places += [path.removesuffix(".gz"), flat, flat.removesuffix(".gz")]
        for place in places:
            if os.path.isfile(root / place):
                found[path] = root / place
                break
    return found


def not_there(name: str, root: Path, default_root: Path) -> ConfigError:
    """Return the error for a folder that was named and lacks official files of ``name``.

    It says where they are, if that is above the folder: one names the inner folder easily.
    """
    for parent in list(root.absolute().parents)[:2]:
        if find_published(name, parent):
            return ConfigError(
                f"{shown(root)}: a part of the {name} files, not the folder that holds them",
                hint=f"give its parent: --data-root {shown(parent)}",
            )
    hint = f"{how_to_get(name)}; without --data-root they are downloaded to {shown(default_root)}"
    if not root.is_dir():
        return ConfigError(f"{shown(root)}: no such folder", hint=hint)
    found = find_published(name, root)
    missing = [file.path for file in PUBLISHED[name] if file.path not in found]
    return ConfigError(
        f"{name}: {len(missing)} of {len(PUBLISHED[name])} files are not under {shown(root)}, "
        f"first {missing[0]}",
        hint=hint,
    )


def check_md5_files(name: str, files: dict[str, Path]) -> None:
    """Check the MD5 of every file; ``files`` as from ``find_published``.

    Raises ``DamagedArtifactError`` naming the first file whose content is not the published one.
    """
    for path, checksum in PUBLISHED[name]:
        if checksum != f"md5:{_hash_of(files[path], 'md5')}":
            raise damaged_file(name, files[path])


def damaged_file(name: str, path: Path) -> DamagedArtifactError:
    """Return the error for a file whose content is not the published one."""
    return DamagedArtifactError(
        f"{shown(path)}: not the published {name} file (wrong checksum)",
        hint="put the official file there; without --data-root it is downloaded once it is deleted",
    )


def on_disk(name: str, root: Path) -> Status:
    """Tell whether the data set ``name`` is there, reading directories only.

    ``root`` is the data root: for ``folder`` and ``imagenet`` the user's own folder.
    """
    if name not in DATA_NAMES:
        raise ConfigError(f"unknown data set {name!r}", hint=f"known: {', '.join(DATA_NAMES)}")
    try:
        if name == "digits":
            return Status(name, True, str(digits_file()), None)
        if name == "folder":
            find_images(root)
            return Status(name, True, str(root), None)
    except (ConfigError, StorageError) as error:
        advice = error.hint if name == "digits" else f"--data-root DIR; {LAYOUT_HINT}"
        return Status(name, False, "scikit-learn" if name == "digits" else str(root), advice)
    if name == "imagenet":
        present = os.path.isdir(root / "train") and os.path.isdir(root / "val")
        advice = "--data-root DIR with train/<class>/* and val/<class>/*"
        return Status(name, present, str(root), None if present else advice)
    present = len(find_published(name, root)) == len(PUBLISHED[name])
    where = (root / PUBLISHED[name][0].path).parent
    return Status(name, present, str(where), None if present else how_to_get(name))


def how_to_get(name: str) -> str:
    """One line on how to get a published data set without a download by d2nas."""
    advice = f"--data-root DIR with the official files ({PUBLISHED[name][0].path} and so on)"
    if name == "fashion-mnist":
        advice += (
            "; on Debian: package dataset-fashion-mnist, DIR /usr/share/datasets/fashion-mnist"
        )
    return advice


def list_config(config: DataConfig, default_root: Path) -> FolderListing:
    """``find_images`` for a ``folder`` or ``imagenet`` configuration.

    Raises ``ConfigError`` also when an ``imagenet`` folder has no val/ or test/.
    """
    listing = find_images(data_root(config, default_root))
    if config.name == "imagenet" and not listing.validation and not listing.test:
        raise ConfigError(
            f"{shown(listing.root)}: imagenet needs train/<class>/* and val/<class>/*",
            hint="or use data.name=folder for one folder per class",
        )
    return listing


def usable_images(
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
            unknown = [index for index, file_hash in enumerate(known) if file_hash is None]
            found = threads.map(lambda index, part=part: _hash_of(part[index], "sha256"), unknown)
            for index, file_hash in zip(unknown, found, strict=True):
                known[index] = file_hash
                # A file that changed while it was read must not be remembered in either state.
                if cache is not None and _cache_key(part[index]) == keys[index]:
                    cache.set(keys[index], file_hash)
            if unknown and progress is not None:
                progress(start + len(part), len(paths))
            yield from (file_hash for file_hash in known if file_hash is not None)


def _cache_key(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error
    # The time of change too: it can't be set back, as the time of modification can.
    state = f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
    return hashlib.sha256(os.fsencode(path.absolute()) + state.encode()).hexdigest()


def _hash_of(path: Path, algorithm: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(
                file, lambda: hashlib.new(algorithm, usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error


DEFAULT_DATA_ROOT = Path("~/.cache/d2nas/data")


def data_folder() -> Path:
    """Return the folder of downloaded data sets where ``data.root`` names none.

    Raises ``ConfigError`` for a user without a home folder.
    """
    try:
        return DEFAULT_DATA_ROOT.expanduser()
    except RuntimeError:  # HOME is not set, and the user is not in the system's list
        raise ConfigError(
            f"there is no home folder for {DEFAULT_DATA_ROOT}",
            hint="set HOME, or name a folder with --data-root",
        ) from None
