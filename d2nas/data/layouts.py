"""Layouts of image folders whose classes lie deeper than where they are looked for.

Unpacked archives often repeat a folder (``seg_train/seg_train/<class>``), or keep the classes one
level down (``images/<class>``, ``data/train/<class>``). Read as they stand, the outer folders would
be the classes: another task, without a word.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError
from .faults import shown

LIKE_A_SPLIT = frozenset(("train", "val", "validation", "test", "training", "valid", "testing"))
_TRAIN = frozenset(("train", "training"))
_MAX_NAMES = 3


@dataclass
class _Folder:
    """A folder and those below it that hold pictures."""

    name: str
    path: str
    pictures: int = 0
    inner: dict[str, "_Folder"] = field(default_factory=dict)

    @property
    def is_outer(self) -> bool:
        """Whether all pictures lie in folders of this one."""
        return not self.pictures and bool(self.inner)

    def spread(self) -> "_Folder | None":
        """Return the first folder, from this one down, with two folders or more and no pictures;
        None where pictures come first.
        """
        folder = self
        while folder.is_outer and len(folder.inner) == 1:
            (folder,) = folder.inner.values()
        return folder if folder.is_outer else None

    def split(self) -> "_Folder | None":
        """Return the train folder where the folders in this one are splits."""
        names = list(self.inner)
        if not self.is_outer or any(name.casefold() not in LIKE_A_SPLIT for name in names):
            return None
        return next((self.inner[name] for name in names if name.casefold() in _TRAIN), None)


def check_depth(root: Path, part: str, classes: Mapping[str, Sequence[str]]) -> None:
    """Refuse classes that are rather folders of classes; ``classes`` holds the paths of each, below
    ``root``; ``part`` is their split, or empty.

    Raises ``ConfigError`` with the path that is meant: for a single folder with pictures, for one
    that holds nothing but one of its own name, or a copy of all the others, for names like
    ``train_data`` beside others of splits, and where the splits are inside of a class. What is only
    likely is for ``nested_line``.
    """
    folders = [_tree(part, name, paths) for name, paths in classes.items() if paths]
    outer = [folder for folder in folders if folder.is_outer]
    outer.sort(key=lambda folder: not _words(folder.name) & _TRAIN)  # of several, this is meant
    if len(folders) == 1:
        if meant := folders[0].spread():
            name = shown(folders[0].name)
            raise _deeper(root, part, meant, f"all pictures are in folders inside {name}/")
        return
    for folder in outer:
        repeated = [name.casefold() for name in folder.inner] == [folder.name.casefold()]
        if repeated and (meant := folder.spread()):
            reason = f"{shown(folder.name)}/ holds nothing but a folder of its own name"
            raise _deeper(root, part, meant, reason)
        beside = {one.name for one in folders} - {folder.name}
        if (meant := folder.spread()) and set(meant.inner) == beside:
            reason = f"{shown(folder.name)}/ holds folders of the names of all classes beside it"
            raise _deeper(root, part, meant, reason)
    worded = [folder for folder in outer if _words(folder.name) & LIKE_A_SPLIT]
    for folder in worded:
        if len(worded) > 1 and _words(folder.name) & _TRAIN and (meant := folder.spread()):
            names = " and ".join(f"{shown(one.name)}/" for one in worded[:_MAX_NAMES])
            raise _deeper(root, part, meant, f"{names} look like splits, not like classes")
    for folder in outer:
        spread = folder.spread() or folder
        train = spread.split()
        if train is not None and train.spread() is not None:
            reason = f"{shown(spread.path)}/ holds splits, and is no class"
            raise _deeper(root, part, spread, reason)
    if folders and all(folder.split() and len(folder.inner) > 1 for folder in folders):
        names = ", ".join(f"{shown(name)}/" for name in folders[0].inner)
        raise ConfigError(
            f"{shown(root / part)}: every class holds splits ({names}), which would be mixed",
            hint="turn them round: train/<class>/*, test/<class>/*",
        )


def nested_line(root: Path, part: str, classes: Mapping[str, Sequence[str]]) -> str | None:
    """Say in one line which classes are taken where one of them holds no picture itself, only
    folders with pictures, so that those may be what is meant; None where there is no doubt.
    Arguments as in ``check_depth``.
    """
    folders = [_tree(part, name, paths) for name, paths in classes.items()]
    doubtful = next((meant for folder in folders if (meant := folder.spread())), None)
    if doubtful is None:
        return None
    if not all(folder.is_outer for folder in folders):
        return (
            f"{shown(doubtful.path)}/ is taken for one class, but unlike others it holds no "
            f"picture itself, only folders ({_some(doubtful.inner)}); if those are the classes: "
            f"--data-root {_quoted(root / doubtful.path)}"
        )
    return (
        f"no class folder holds pictures itself: the classes are {_some(classes)}, and what lies "
        f"in {shown(doubtful.path)}/ ({_some(doubtful.inner)}) is one of them; if those are the "
        f"classes: --data-root {_quoted(root / doubtful.path)}"
    )


def _deeper(root: Path, part: str, meant: _Folder, reason: str) -> ConfigError:
    hint = f"if the classes are {_some(meant.inner)}: --data-root {_quoted(root / meant.path)}"
    if meant.split() is not None:
        hint = f"--data-root {_quoted(root / meant.path)}"
    elif part or _words(meant.name) & LIKE_A_SPLIT:
        hint += "; for all splits: one folder with train/<class>/* and test/<class>/*"
    return ConfigError(f"{shown(root / part)}: {reason}", hint=hint)


def _tree(part: str, name: str, paths: Sequence[str]) -> _Folder:
    """Return a class folder, and of one without pictures of its own what is inside."""
    top = _Folder(name, f"{part}/{name}" if part else name)
    start = len(top.path) + 1
    top.pictures = int(any("/" not in path[start:] for path in paths))
    for path in () if top.pictures else paths:
        folder = top
        for step in path[start:].split("/")[:-1]:
            if step not in folder.inner:
                folder.inner[step] = _Folder(step, f"{folder.path}/{step}")
            folder = folder.inner[step]
        folder.pictures += 1
    return top


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.casefold()))


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    told = ", ".join(shown(name) for name in listed[:_MAX_NAMES])
    return told + (f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else "")


def _quoted(path: Path) -> str:
    return shlex.quote(shown(path))
