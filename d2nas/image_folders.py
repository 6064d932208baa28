"""Folder data sets: a folder per class, with or without split folders (no torch).

The listing refuses what would silently become a wrong data set.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from .errors import ConfigError, D2NasError, StorageError

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
_SYSTEM_NAMES = frozenset(("__macosx", "@eadir", "lost+found", "thumbs.db", "desktop.ini"))
"""What operating systems and archives leave in folders, case folded: as hidden as ``.DS_Store``."""
_MAX_SUFFIXES_TOLD = 8
MIN_TRAIN_IMAGES = 4
"""Per class: one for the test split, one for each half, and one to spare."""

_SPLITS = ("train", "val", "validation", "test")
_LIKE_A_SPLIT = frozenset((*_SPLITS, "training", "valid", "testing"))
LAYOUT_HINT = "expected ROOT/<class>/*, or ROOT/{train,val,test}/<class>/*"


class ImageFile(NamedTuple):
    """One image of a folder data set."""

    path: str
    """Relative to the root, with forward slashes."""
    label: int


@dataclass(frozen=True)
class FolderListing:
    """The images below ``root``, each part in a fixed order: by class name, then by path.

    ``validation`` and ``test`` are empty where the folder has no such part.
    """

    root: Path
    class_names: tuple[str, ...]
    train: tuple[ImageFile, ...]
    validation: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]
    left_out: Counter[str] = field(default_factory=Counter, compare=False)
    """Files of other types that were found, by suffix, and pictures outside every class folder."""

    def left_out_line(self) -> str | None:
        """Say in one printable line what was found and is not used; None for nothing."""
        return left_out_line(self.left_out, "the data folder")

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """All images: train, then validation, then test."""
        return self.train + self.validation + self.test


def find_images(root: Path) -> FolderListing:
    """List the images of ``root/<class>/*`` or ``root/{train,val|validation,test}/<class>/*``.

    Folders inside a class are walked; hidden names are ignored, and so are those of the system
    (``__MACOSX``). Other file types and pictures that lie outside a class folder are counted in
    ``left_out``. A link to a file counts if it stays inside ``root``.

    Raises ``ConfigError`` for anything that would make a wrong data set: no or one class, a class
    that is empty, too small, or not among the training classes, splits that can't be told from
    classes, links that leave ``root`` or lead to folders.
    """
    _check_is_folder(root)
    real_root = root.resolve()
    left_out: Counter[str] = Counter()
    names, outside = _scan(root, "", real_root, left_out)
    splits = _split_folders(root, names, real_root)
    if not splits:
        parts = {"": _list_classes(root, "", names, real_root, left_out)}
    else:
        parts = {}
        for split in splits:
            classes, pictures = _scan(root, split, real_root, left_out)
            outside += pictures
            parts[split] = _list_classes(root, f"{split}/", classes, real_root, left_out)
    if outside:
        left_out["pictures outside the class folders"] += len(outside)
    return replace(_checked(root, parts), left_out=left_out)


@dataclass(frozen=True)
class PictureListing:
    """Every picture below ``root``, sorted by path, and what cannot be one beside them."""

    root: Path
    folders: tuple[str, ...]
    """Names of the folders directly inside, sorted."""
    pictures: tuple[tuple[str, D2NasError | None], ...]
    """Paths relative to the root, with forward slashes; with the reason where one cannot be
    read, or a folder not be listed."""
    left_out: Counter[str]
    """Files of other types, by suffix."""


def list_pictures(root: Path) -> PictureListing:
    """List the pictures of a folder and all folders in it, whatever their names mean.

    The same names are taken and ignored as by ``find_images``. What that refuses (links that leave
    ``root`` or lead to folders, folders that cannot be listed) stands among the pictures, with the
    reason. Raises ``StorageError`` where ``root`` itself cannot be listed.
    """
    real_root = root.resolve()
    found: list[tuple[str, D2NasError | None]] = []
    left_out: Counter[str] = Counter()
    inside: list[str] = []
    waiting = [""]
    while waiting:
        current = waiting.pop()
        try:
            folders, images = _scan(root, current, real_root, left_out, found)
        except StorageError as error:
            if not current:
                raise
            found.append((current, error))
            continue
        if not current:
            inside = folders
        prefix = f"{current}/" if current else ""
        waiting += (prefix + name for name in folders)
        found += ((prefix + name, None) for name in images)
    return PictureListing(
        root, tuple(inside), tuple(sorted(found, key=lambda item: item[0])), left_out
    )


def left_out_line(left_out: Counter[str], folder: Path | str) -> str | None:
    """Say in one printable line what was found in a folder and is not used; None for nothing."""
    if not left_out:
        return None
    kinds = left_out.most_common()
    told = ", ".join(f"{count} {shown(kind)}" for kind, count in kinds[:_MAX_SUFFIXES_TOLD])
    if len(kinds) > _MAX_SUFFIXES_TOLD:
        told += f" and {len(kinds) - _MAX_SUFFIXES_TOLD} other types"
    return f"files left out: {left_out.total()} of {shown(folder)} ({told})"


def known_suffixes() -> str:
    """Return the suffixes of the pictures that are read, as a hint names them."""
    return ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))


def shown(path: Path | str) -> str:
    """Return a path as one printable line."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(path)
    )


def _check_is_folder(root: Path) -> None:
    try:
        exists, is_folder = root.exists(), root.is_dir()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown(root)}: {error}", hint="--data-root names the folder") from None
    if not exists:
        raise ConfigError(f"{shown(root)}: no such folder", hint="--data-root names the folder")
    if not is_folder:
        raise ConfigError(f"{shown(root)}: not a folder", hint="--data-root names the folder")


def _split_folders(root: Path, names: list[str], real_root: Path) -> list[str]:
    """Return the folders of ``root`` that are splits; none when they are classes.

    What looks like both is refused: taking train/ and test/ for two classes would go unnoticed.
    """
    like_splits = [name for name in names if name.casefold() in _LIKE_A_SPLIT]
    if len(like_splits) < len(names):
        for name in like_splits:
            folders, images = _scan(root, name, real_root, Counter())
            if folders and not images:
                others = sorted(set(names) - set(like_splits))
                raise ConfigError(
                    f"{shown(root)}: {name}/ looks like a split, {shown(others[0])}/ like a class",
                    hint="keep only train, val and test there, or only folders of classes",
                )
        return []
    for name in like_splits:
        if name not in _SPLITS:
            raise ConfigError(
                f"{shown(root)}: {name}/ looks like a split, but is not named as one",
                hint="name the splits train, val (or validation) and test",
            )
    if like_splits and "train" not in like_splits:
        raise ConfigError(f"{shown(root)}: {like_splits[0]}/ but no train/", hint=LAYOUT_HINT)
    if {"val", "validation"} <= set(like_splits):
        raise ConfigError(f"{shown(root)}: both val/ and validation/", hint="keep one of them")
    return like_splits


def _list_classes(
    root: Path, prefix: str, names: list[str], real_root: Path, left_out: Counter[str]
) -> dict[str, list[str]]:
    classes = {}
    for name in names:
        if not name.isprintable():
            raise ConfigError(
                f"{shown(root)}: class name {shown(prefix + name)} is not printable text",
                hint="rename the folder"
                if sys.getfilesystemencoding() == "utf-8"
                else "names are read in this locale's encoding: set PYTHONUTF8=1",
            )
        classes[name] = sorted(_walk(root, prefix + name, real_root, left_out))
    return classes


def _walk(root: Path, folder: str, real_root: Path, left_out: Counter[str]) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        folders, images = _scan(root, current, real_root, left_out)
        waiting += (f"{current}/{name}" for name in folders)
        yield from (f"{current}/{name}" for name in images)


def _scan(
    root: Path,
    folder: str,
    real_root: Path,
    left_out: Counter[str],
    refused: list[tuple[str, D2NasError | None]] | None = None,
) -> tuple[list[str], list[str]]:
    """Return the names of the folders (sorted) and images directly inside ``root/folder``.

    Other files are counted by suffix in ``left_out``. What must not be read is added to
    ``refused``, or raised where that is None.
    """
    folders, images = [], []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_NAMES:
                    continue
                is_image = os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
                is_link = entry.is_symlink() and (is_image or entry.is_dir())
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif is_image or is_link:
                    try:
                        _check_readable(entry, is_link, real_root)
                    except ConfigError as error:
                        if refused is None:
                            raise
                        where = f"{folder}/{entry.name}" if folder else entry.name
                        refused.append((where, error))
                        continue
                    images.append(entry.name)
                else:
                    left_out[os.path.splitext(entry.name)[1].lower() or "without a suffix"] += 1
    except OSError as error:
        raise StorageError(f"{shown(root / folder)}: {error.strerror or error}") from error
    return sorted(folders), images


def _check_readable(entry: os.DirEntry[str], is_link: bool, real_root: Path) -> None:
    if is_link:
        _check_link(Path(entry.path), real_root)
    elif not entry.is_file(follow_symlinks=False):
        raise ConfigError(f"{shown(entry.path)}: not a regular file")


def _check_link(path: Path, real_root: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise ConfigError(f"{shown(path)}: a link that leads nowhere", hint="remove it") from None
    if target.is_dir():
        raise ConfigError(
            f"{shown(path)}: links to folders are not followed", hint="put the folder itself there"
        )
    if not target.is_relative_to(real_root):
        raise ConfigError(
            f"{shown(path)}: a link that leaves the data folder", hint="copy the file there"
        )
    if not target.is_file():
        raise ConfigError(f"{shown(path)}: not a regular file")


def _checked(root: Path, parts: dict[str, dict[str, list[str]]]) -> FolderListing:
    """Check the classes of each part, ``train`` (or ``""``, the whole) first among equals."""
    whole = "" in parts
    train = parts["" if whole else "train"]
    if not any(images for classes in parts.values() for images in classes.values()):
        raise ConfigError(
            f"{shown(root)}: no images in folders of classes",
            hint=f"{LAYOUT_HINT}; {known_suffixes()}",
        )
    if len(train) < 2:
        only = next(iter(train), "none")
        raise ConfigError(
            f"{shown(root)}: a classifier needs two classes or more, found {only}",
            hint=LAYOUT_HINT,
        )
    for part, classes in parts.items():
        for name, images in classes.items():
            where = f"{shown(root)}: class {f'{part}/{name}' if part else name}"
            if not images:
                raise ConfigError(f"{where} has no images", hint="add images, or remove the folder")
            if name not in train:
                raise ConfigError(f"{where} is not among the training classes", hint=LAYOUT_HINT)
            if classes is train and len(images) < MIN_TRAIN_IMAGES:
                raise ConfigError(
                    f"{where} has {len(images)} images, at least {MIN_TRAIN_IMAGES} are needed",
                    hint="add images, or remove the folder",
                )
    labels = {name: label for label, name in enumerate(sorted(train))}

    def files(part: str) -> tuple[ImageFile, ...]:
        classes = parts.get(part, {})
        return tuple(
            ImageFile(path, labels[name]) for name in sorted(classes) for path in classes[name]
        )

    return FolderListing(
        root=root,
        class_names=tuple(labels),
        train=files("" if whole else "train"),
        validation=files("val") + files("validation"),
        test=files("test"),
    )
