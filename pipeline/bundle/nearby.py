"""Bundles that an invalid path may mean: those of its folder, or the one that it is part of."""

import os
from collections.abc import Sequence
from pathlib import Path

from d2nas.data.faults import shown
from d2nas.errors import ConfigError

from ..store.fsio import storage_error
from .checksums import CHECKSUMS

_MAX_NAMES_TOLD = 20
_MARKS = (CHECKSUMS, "config.pbtxt")
_LEVELS_ABOVE = 2
"""From a version's file to its bundle."""


def is_bundle(folder: Path) -> bool:
    """Whether a path looks like a bundle, sound or not. The folder of a version, which has a
    ``config.pbtxt`` too, is none.
    """
    if (folder / CHECKSUMS).is_file():
        return True
    whole = Path(os.path.abspath(folder))
    if whole.name.isdecimal() and any((whole.parent / name).is_file() for name in _MARKS):
        return False
    return (folder / "config.pbtxt").is_file()


def bundles_near(path: Path) -> list[Path]:
    """Return the bundles in a folder, sorted, or else the one that a path lies in.

    Raises ``StorageError`` for a folder that cannot be listed.
    """
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        found = [folder for folder in inside if _may_be_meant(folder)]
        if found or not path.exists():
            return found
        # Of a relative path, "." has no parents.
        whole = Path(os.path.abspath(path))
        return [folder for folder in [*whole.parents][:_LEVELS_ABOVE] if is_bundle(folder)]
    except OSError as error:
        raise storage_error(error, "read", path) from error


def _may_be_meant(folder: Path) -> bool:
    """Whether a neighbour is a bundle; one that may not be looked into, as ``/root``, is none."""
    try:
        return is_bundle(folder)
    except PermissionError:
        return False


def no_bundle(path: Path) -> ConfigError:
    """Return the error of a path that is no bundle; it names those that may be meant.

    Raises ``StorageError`` as ``bundles_near``.
    """
    if not path.exists():
        beside = bundles_near(path.parent) if path.parent != path else []
        names = f"; {shown(path.parent)} holds {named([one.name for one in beside])}"
        return ConfigError(
            f"{shown(path)}: no bundle, there is no such folder{names if beside else ''}",
            hint="give the folder of one model, for example exported/quickstart",
        )
    near = bundles_near(path)
    if not near:
        return ConfigError(
            f"{shown(path)}: no bundle, it holds neither {CHECKSUMS} nor config.pbtxt",
            hint="give the folder of one model, for example exported/quickstart",
        )
    inside = near[0].parent == path
    if not inside:
        what = f"is a part of the bundle {near[0].name}"
    elif len(near) == 1:
        what = f"holds the bundle {near[0].name}"
    else:
        what = f"holds {len(near)} bundles: {named([one.name for one in near])}"
    return ConfigError(
        f"{shown(path)}: no bundle, it {what}", hint=f"did you mean {shown(near[0])}?"
    )


def named(names: Sequence[str]) -> str:
    """Return names in one printable line, the first ones of many."""
    told = ", ".join(shown(name) for name in names[:_MAX_NAMES_TOLD])
    more = len(names) - _MAX_NAMES_TOLD
    return f"{told} and {more} more" if more > 0 else told
