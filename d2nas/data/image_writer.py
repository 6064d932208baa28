"""Writing of image files with their manifest: a folder that appears whole or not at all."""

import contextlib
import csv
import errno
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StorageError
from .faults import shown

MANIFEST = "manifest.csv"
_REMARKS = "remarks.txt"
_FILES_PER_FOLDER = 1000
_STARTS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


class ImageWriter:
    """Writes images below a folder, and the manifest that names them."""

    def __init__(self, folder: Path, rows: Any) -> None:
        self._folder = folder
        self._rows = rows
        self._counts: Counter[str] = Counter()
        rows.writerow(("path", "label", "split"))

    def write(self, part: str, label: str, content: bytes) -> None:
        """Write one image: the content of its file; ``part`` is ``train``, ``val`` or ``test``.

        Files are named by part and number alone, so that equal images in equal order have one
        digest. Raises ``StorageError``.
        """
        number = self._counts[part]
        self._counts[part] += 1
        inside = f"{part}/{number // _FILES_PER_FOLDER:04}"
        path = f"{inside}/{number:07}{suffix_of(content)}"
        with _told(self._folder):
            (self._folder / inside).mkdir(parents=True, exist_ok=True)
            (self._folder / path).write_bytes(content)
            self._rows.writerow((path, label, part))

    def remark(self, line: str) -> None:
        """Note in one line what is not among the images, for ``remarks_of``."""
        with _told(self._folder), (self._folder / _REMARKS).open("a", encoding="utf-8") as file:
            file.write(f"{shown(line)}\n")


@contextlib.contextmanager
def written_images(folder: Path) -> Iterator[ImageWriter]:
    """Give a writer of images and their manifest into ``folder``, which must not exist.

    If another process makes it meanwhile, that one stays. Raises ``ConfigError`` where it is there
    at the start, ``StorageError`` where it cannot be written.
    """
    if os.path.lexists(folder):
        raise ConfigError(f"{shown(folder)}: is there already", hint="name a new folder")
    staging = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        with _told(folder):
            staging.mkdir(parents=True)
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            table = (staging / MANIFEST).open("x", encoding="utf-8", newline="")
            stack.enter_context(table)
        yield ImageWriter(staging, csv.writer(table))
        with _told(folder):
            table.close()
            try:
                os.rename(staging, folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise


def remarks_of(folder: Path) -> tuple[str, ...]:
    """Return what was noted when the images of a folder were written. Raises ``StorageError``."""
    if not (folder / _REMARKS).is_file():
        return ()
    with _told(folder):
        return tuple((folder / _REMARKS).read_text(encoding="utf-8").splitlines())


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{shown(folder)}: {error.strerror or error}") from error


def suffix_of(content: bytes) -> str:
    """Return the suffix of a picture's file by its first bytes; empty where they say nothing."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in _STARTS if content.startswith(start)), "")
