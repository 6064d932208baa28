"""Pictures to answer: files, folders of them, and the bytes on stdin."""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2nas.data.decoding import MAX_FILE_BYTES, Decoding, decode_image, read_image
from d2nas.data.faults import shown
from d2nas.data.folders import PictureListing, known_suffixes, left_out_line, list_pictures
from d2nas.errors import ConfigError, D2NasError, StorageError

STDIN = "-"


@dataclass(frozen=True)
class Picture:
    """A picture file, or the one on stdin where there is no path."""

    path: Path | None

    @property
    def name(self) -> str:
        """Name of the picture in answers."""
        return STDIN if self.path is None else str(self.path)

    def pixels(self, decoding: Decoding) -> NDArray[np.uint8]:
        """Return the decoded pixels. Raises as ``read_image``."""
        if self.path is not None:
            return read_image(self.path, decoding)[0]
        return decode_image(_stdin_content(), decoding, what=STDIN)


def find_pictures(
    names: Sequence[str], say: Callable[[str], None]
) -> Iterator[Picture | D2NasError]:
    """Yield the pictures that paths name, in order, and errors in place of those that are none.

    A folder stands for all pictures in it and in its folders, sorted; ``say`` hears how many files
    of other types it has. ``-`` is the picture on stdin. Raises ``ConfigError`` where that cannot
    be read.
    """
    if names.count(STDIN) > 1:
        raise ConfigError("- is given more than once", hint="stdin has one picture")
    if STDIN in names and sys.stdin.isatty():
        raise ConfigError(
            "- reads a picture from stdin, which is a terminal",
            hint=f"d2nas predict BUNDLE {STDIN} < PICTURE",
        )
    return _found(names, say)


def _found(names: Sequence[str], say: Callable[[str], None]) -> Iterator[Picture | D2NasError]:
    for name in names:
        if name == STDIN:
            yield Picture(None)
        else:
            yield from pictures_at(name, say)


def pictures_at(name: str, say: Callable[[str], None]) -> Iterator[Picture | D2NasError]:
    """Yield the picture at a path, or all in the folder there; see ``find_pictures``."""
    try:
        listing = listing_of(name)
    except (ConfigError, StorageError) as error:
        yield error
        return
    if listing is None:
        yield Picture(Path(name))
        return
    line = left_out_line(listing.left_out, name)
    if line is not None:
        say(line)
    if not listing.pictures:
        yield ConfigError(f"{shown(name)}: no picture in this folder", hint=known_suffixes())
    for path, problem in listing.pictures:
        yield Picture(listing.root / path) if problem is None else problem


def listing_of(name: str) -> PictureListing | None:
    """Return the pictures in a folder, or None for a file. Raises as ``list_pictures``, and
    ``ConfigError`` for what is not there.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(name).st_mode)
        return list_pictures(Path(name)) if is_folder else None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ConfigError(f"{shown(name)}: there is no such file") from None
    except OSError as error:
        raise StorageError(f"{shown(name)}: {error.strerror or error}") from error


def _stdin_content() -> bytes:
    try:
        content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StorageError(f"stdin: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"stdin: more than {MAX_FILE_BYTES} bytes, the most for one image")
    return content
