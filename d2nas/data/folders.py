"""Listings of image files: a folder per class, with or without split folders.

The listing refuses what would silently become a wrong data set.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, D2NasError, StorageError
from .faults import MAX_TOLD, FaultKind, Faults, shown
from .layouts import LIKE_A_SPLIT, check_depth, nested_line

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo"),
    )
)
_OPTIONAL_SUFFIXES = {
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG2000"),
}
"""Suffixes of pictures that not every Pillow reads, and their format."""
_SYSTEM_NAMES = frozenset(
    (
        *("__macosx", "@eadir", "lost+found", "thumbs.db", "desktop.ini"),
        *("$recycle.bin", "system volume information"),
    )
)
"""What operating systems and archives leave in folders, case folded: as hidden as ``.DS_Store``."""
_MAX_SUFFIXES_TOLD = 8
MIN_TRAIN_IMAGES = 4
"""Per class: one for the test split, one for each half, and one to spare."""

SPLITS = ("train", "val", "validation", "test")
LAYOUT_HINT = "expected ROOT/<class>/*, or ROOT/{train,val,test}/<class>/*"
IRREGULAR: tuple[FaultKind, str, str] = ("irregular files", "not a regular file", "remove it")


class ImageFile(NamedTuple):
    """One image file of a data set."""

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

    nested: str | None = field(default=None, compare=False)
    """What ``nested_line`` says of the training classes."""

    damaged: tuple[str, ...] = ()
    """Images that cannot be decoded and were left out; see ``without``."""

    from_manifest: bool = False
    """Whether a manifest says class and part of each image, whatever its path."""

    remarks: tuple[str, ...] = field(default=(), compare=False)
    """What a manifest holds and is not used, one printable line each."""

    def notes(self) -> list[str]:
        """Say in printable lines what was found and is not used, and what is uncertain."""
        lines = (self.left_out_line(), self.damaged_line(), self.nested, *self.remarks)
        return [line for line in lines if line is not None]

    def content_names(self) -> list[str]:
        """Return what stands for each of ``files`` in the digest of the content: its path, which
        says class and part; part and class too where a manifest says others than a folder's rules.
        """
        if not self.from_manifest or self._is_as_in_folders():
            return [file.path for file in self.files]
        return [
            f"{file.path}\0{part}\0{self.class_names[file.label]}"
            for part, files in self._parts()
            for file in files
        ]

    def _is_as_in_folders(self) -> bool:
        """Whether ``find_images`` would take from the paths what the manifest says."""
        heads = {file.path.partition("/")[0] for file in self.files}
        has_splits = all(head.casefold() in LIKE_A_SPLIT for head in heads)
        if not has_splits and (self.validation or self.test):
            return False
        names = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
        for part, files in self._parts():
            places = [f"{name}/" for name in names[part]] if has_splits else [""]
            for file in files:
                # Exactly one step: labels may hold slashes, names of folders do not.
                folders = [
                    file.path.removeprefix(place).partition("/")[0]
                    for place in places
                    if file.path.startswith(place)
                ]
                if self.class_names[file.label] not in folders:
                    return False
        return True

    def _parts(self) -> tuple[tuple[str, tuple[ImageFile, ...]], ...]:
        return ("train", self.train), ("val", self.validation), ("test", self.test)

    def left_out_line(self) -> str | None:
        """Say in one printable line what was found and is not used; None for nothing."""
        return left_out_line(self.left_out, "the data folder")

    def damaged_line(self) -> str | None:
        """Count and name in one printable line the damaged images left out; None for none."""
        if not self.damaged:
            return None
        told = ", ".join(shown(path) for path in self.damaged[:MAX_TOLD])
        if len(self.damaged) > MAX_TOLD:
            told += f" and {len(self.damaged) - MAX_TOLD} more"
        total = len(self.damaged) + len(self.files)
        return f"damaged images left out: {len(self.damaged)} of {total} ({told})"

    def without(self, damaged: Mapping[str, str]) -> "FolderListing":
        """Return the listing without images that cannot be decoded; ``damaged`` gives the reason of
        each path.

        Raises ``ConfigError`` where a class gets too small, or a part empty.
        """
        faults = Faults(self.root)
        kept: dict[str, Any] = {}
        for part in ("train", "validation", "test"):
            files: tuple[ImageFile, ...] = getattr(self, part)
            kept[part] = tuple(file for file in files if file.path not in damaged)
            if files and not kept[part]:
                reason = f"none of the {len(files)} {part} images can be decoded"
                faults.add("empty classes", reason, "repair images, or add some")
        counts = Counter(file.label for file in kept["train"])
        for label, name in enumerate(self.class_names):
            if counts[label] < MIN_TRAIN_IMAGES:
                reason = (
                    f"class {shown(name)} has {counts[label]} images that can be decoded, at least "
                    f"{MIN_TRAIN_IMAGES} are needed"
                )
                faults.add("small classes", reason, "repair images, or add some")
        if faults:
            for path, reason in damaged.items():
                faults.add("damaged images", reason, "repair images, or add some", path=path)
        faults.raise_any()
        return replace(self, **kept, damaged=tuple(sorted(damaged)))

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """All images: train, then validation, then test."""
        return self.train + self.validation + self.test


def find_images(root: Path) -> FolderListing:
    """List the images of ``root/<class>/*`` or ``root/{train,val|validation,test}/<class>/*``.

    Folders inside a class are walked; hidden names are ignored, and so are those of the system
    (``__MACOSX``). Other file types and pictures that lie outside a class folder are counted in
    ``left_out``. A link to a file counts if it stays inside ``root``.

    Raises ``ConfigError`` for anything that would make a wrong data set. First for the layout: no
    images, splits that can't be told from classes, classes that lie deeper (``layouts``).
    Then for all of these at once: fewer than two classes, a class that is empty, too small, or not
    among the training classes, names that can't be printed, links that leave ``root`` or lead to
    folders.
    """
    _check_is_folder(root)
    search = _Search(root)
    names, outside = search.scan("")
    splits = _split_folders(root, names)
    if not splits:
        parts = {"": search.classes("", names)}
    else:
        parts = {}
        for split in splits:
            classes, pictures = search.scan(split)
            outside += pictures
            parts[split] = search.classes(f"{split}/", classes)
    if outside:
        search.left_out["pictures outside the class folders"] += len(outside)
    return _checked(search, parts)


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
    search = _Search(root)
    found: dict[str, D2NasError | None] = {}
    inside: list[str] = []
    waiting = [""]
    while waiting:
        current = waiting.pop()
        try:
            folders, images = search.scan(current)
        except StorageError as error:
            if not current:
                raise
            found[current] = error
            continue
        if not current:
            inside = folders
        prefix = f"{current}/" if current else ""
        waiting += (prefix + name for name in folders)
        found |= dict.fromkeys(prefix + name for name in images)
    found |= search.faults.errors()
    return PictureListing(root, tuple(inside), tuple(sorted(found.items())), search.left_out)


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
    optional = filter(_is_read, _OPTIONAL_SUFFIXES)
    return ", ".join(sorted(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *optional)))


def _is_read(suffix: str) -> bool:
    """Whether a suffix is of a format that not every Pillow reads, and this one does."""
    if suffix not in _OPTIONAL_SUFFIXES:
        return False
    from . import preprocess  # only now: it loads Pillow

    return _OPTIONAL_SUFFIXES[suffix] in preprocess.FORMATS


def _check_is_folder(root: Path) -> None:
    try:
        exists, is_folder = root.exists(), root.is_dir()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown(root)}: {error}", hint="--data-root names the folder") from None
    if not exists:
        raise ConfigError(f"{shown(root)}: no such folder", hint="--data-root names the folder")
    if not is_folder:
        raise ConfigError(f"{shown(root)}: not a folder", hint="--data-root names the folder")


def _split_folders(root: Path, names: list[str]) -> list[str]:
    """Return the folders of ``root`` that are splits; none when they are classes.

    What looks like both is refused: taking train/ and test/ for two classes would go unnoticed.
    """
    like_splits = [name for name in names if name.casefold() in LIKE_A_SPLIT]
    if len(like_splits) < len(names):
        for name in like_splits:
            folders, images = _Search(root).scan(name)
            if folders and not images:
                others = sorted(set(names) - set(like_splits))
                raise ConfigError(
                    f"{shown(root)}: {name}/ looks like a split, {shown(others[0])}/ like a class",
                    hint="keep only train, val and test there, or only folders of classes",
                )
        return []
    for name in like_splits:
        if name not in SPLITS:
            raise ConfigError(
                f"{shown(root)}: {name}/ looks like a split, but is not named as one",
                hint="name the splits train, val (or validation) and test",
            )
    if like_splits and "train" not in like_splits:
        raise ConfigError(f"{shown(root)}: {like_splits[0]}/ but no train/", hint=LAYOUT_HINT)
    if {"val", "validation"} <= set(like_splits):
        raise ConfigError(f"{shown(root)}: both val/ and validation/", hint="keep one of them")
    return like_splits


class _Search:
    """One walk through the folders below ``root``: what is left out, and what is wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: Counter[str] = Counter()
        self.faults = Faults(root)
        self._real_root = root.resolve()

    def classes(self, prefix: str, names: list[str]) -> dict[str, list[str]]:
        """Return the paths of the images of each class, sorted."""
        found = {}
        for name in names:
            if not name.isprintable():
                self.faults.add(
                    "class names",
                    f"class name {shown(prefix + name)} is not printable text",
                    "rename the folder"
                    if sys.getfilesystemencoding() == "utf-8"
                    else "names are read in this locale's encoding: set PYTHONUTF8=1",
                )
            found[name] = sorted(self._walk(prefix + name))
        return found

    def _walk(self, folder: str) -> Iterator[str]:
        waiting = [folder]
        while waiting:
            current = waiting.pop()
            folders, images = self.scan(current)
            waiting += (f"{current}/{name}" for name in folders)
            yield from (f"{current}/{name}" for name in images)

    def scan(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders (sorted) and images directly inside ``root/folder``.

        Other files are counted by suffix in ``left_out``. A faulty link or file is among the
        images: its class is not told to be empty on top.
        """
        folders, images = [], []
        place = self.root / folder
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_NAMES:
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    suffix = os.path.splitext(entry.name)[1].lower()
                    is_image = suffix in IMAGE_SUFFIXES or _is_read(suffix)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif entry.is_symlink() and (is_image or entry.is_dir()):
                        check_link(path, self.root, self._real_root, self.faults)
                        images.append(entry.name)
                    elif is_image:
                        if not entry.is_file(follow_symlinks=False):
                            self.faults.add(*IRREGULAR, path=path)
                        images.append(entry.name)
                    elif suffix in _OPTIONAL_SUFFIXES:
                        self.left_out[f"{suffix} that this Pillow does not read"] += 1
                    else:
                        self.left_out[suffix or "without a suffix"] += 1
        except OSError as error:
            raise StorageError(f"{shown(place)}: {error.strerror or error}") from error
        return sorted(folders), images


def check_link(path: str, root: Path, real_root: Path, faults: Faults) -> None:
    """Note what is wrong with the link at ``path`` below ``root``, whose own path without links is
    ``real_root``.
    """
    try:
        target = (root / path).resolve(strict=True)
    except (OSError, RuntimeError):
        faults.add("links", "a link that leads nowhere", "remove it", path=path)
        return
    if target.is_dir():
        hint = "put the folder itself there"
        faults.add("links", "links to folders are not followed", hint, path=path)
    elif not target.is_relative_to(real_root):
        faults.add("links", "a link that leaves the data folder", "copy the file there", path=path)
    elif not target.is_file():
        faults.add(*IRREGULAR, path=path)


def _checked(search: _Search, parts: dict[str, dict[str, list[str]]]) -> FolderListing:
    """Check where the classes of each part lie, and the classes; see ``checked_classes``."""
    root = search.root
    main = "" if "" in parts else "train"
    if not search.faults:  # of a folder that holds only links, they are what is to be told
        if not any(images for classes in parts.values() for images in classes.values()):
            raise ConfigError(
                f"{shown(root)}: no images in folders of classes",
                hint=f"{LAYOUT_HINT}; {known_suffixes()}",
            )
        for part in sorted(parts, key=lambda part: part != main):
            check_depth(root, part, parts[part])
    remedy = "add images, or name the folder of the classes: --data-root"
    listing = checked_classes(root, parts, search.faults, layout=LAYOUT_HINT, remedy=remedy)
    nested = nested_line(root, main, parts[main])
    return replace(listing, left_out=search.left_out, nested=nested)


def checked_classes(
    root: Path,
    parts: Mapping[str, Mapping[str, Sequence[str]]],
    faults: Faults,
    *,
    layout: str,
    remedy: str,
) -> FolderListing:
    """Return the listing of ``parts``: the paths of each class, sorted, by split, or all in the
    part ``""``. There is ``train`` or ``""``.

    Raises ``ConfigError`` for ``faults`` that were noted before, for fewer than two classes, one
    that is empty or too small, or is not among the training classes; ``layout`` and ``remedy`` are
    the hints.
    """
    main = "" if "" in parts else "train"
    train = parts[main]
    if len(train) < 2:
        only = shown(next(iter(train), "none"))
        reason = f"a classifier needs two classes or more, found {only}"
        faults.add("too few classes", reason, layout)
    for part, classes in parts.items():
        for name, images in classes.items():
            where = f"class {shown(f'{part}/{name}' if part else name)}"
            if not images:
                faults.add("empty classes", f"{where} has no images", remedy)
            elif name not in train:
                reason = f"{where} is not among the training classes"
                faults.add("unknown classes", reason, layout)
            elif classes is train and len(images) < MIN_TRAIN_IMAGES:
                reason = f"{where} has {len(images)} images, at least {MIN_TRAIN_IMAGES} are needed"
                faults.add("small classes", reason, remedy)
    faults.raise_any()
    labels = {name: label for label, name in enumerate(sorted(train))}

    def files(part: str) -> tuple[ImageFile, ...]:
        classes = parts.get(part, {})
        return tuple(
            ImageFile(path, labels[name]) for name in sorted(classes) for path in classes[name]
        )

    return FolderListing(
        root=root,
        class_names=tuple(labels),
        train=files(main),
        validation=files("val") + files("validation"),
        test=files("test"),
    )
