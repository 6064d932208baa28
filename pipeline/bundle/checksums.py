"""``SHA256SUMS``: which files a bundle has, no more and no fewer, and what is wrong with it."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from d2nas.errors import DamagedArtifactError

from ..onnx_io import LIBRARY_FILE, MODEL_FILE, served_model
from ..store.fsio import storage_error

CHECKSUMS = served_model.CHECKSUMS
FILES = (
    "MODEL_CARD.md",
    "config.pbtxt",
    "golden.safetensors",
    "labels.txt",
    "preprocess.json",
    "report.json",
)
"""What every bundle holds beside its models; others may be listed, too."""
OF_CELLS: tuple[str, ...] = ("genotype.json", "genotype.svg")
"""What it holds of a network of cells; of a library's network ``LIBRARY_FILE`` in their place."""

VERSION_FILES = (
    LIBRARY_FILE,
    "config.pbtxt",
    "genotype.json",
    "golden.png",
    "golden.safetensors",
    "labels.txt",
    "preprocess.json",
    "preprocess.py",
    "report.json",
)
"""What a version's folder holds beside its model; the bundle itself has those of the one served."""

HINT = "copy the bundle again from where it was made, or write it again: d2nas validate RUN"
MAX_CHECKSUM_BYTES = 2**20
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_OF_VERSION = re.compile(
    rf"([1-9][0-9]{{0,8}})/({'|'.join(map(re.escape, (MODEL_FILE, *VERSION_FILES)))})"
)


def parse_sums(folder: Path, content: bytes) -> dict[str, str]:
    """Return the SHA-256 of every file that ``content`` lists, by its path in the bundle.

    Raises ``DamagedArtifactError`` for a line of another form, a path that leads out, a file listed
    twice, and for one of ``FILES``, or of its network's, that is missing.
    """
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        raise damaged(folder, CHECKSUMS, "is not ASCII text") from None
    sums: dict[str, str] = {}
    for line in text.splitlines(keepends=True):
        match = _LINE.fullmatch(line)
        if match is None or not (_FILE.fullmatch(match[2]) or version_file(match[2])):
            raise damaged(folder, CHECKSUMS, f"has a line that is none of its own: {line[:80]!r}")
        if match[2].lower() in (path.lower() for path in sums) or match[2] == CHECKSUMS:
            raise damaged(folder, CHECKSUMS, f"lists {match[2]} twice")
        sums[match[2]] = match[1]
    of_network = OF_CELLS
    if LIBRARY_FILE in sums:
        of_network = (LIBRARY_FILE,)
        for name in sorted(sums.keys() & {*OF_CELLS}):
            raise damaged(folder, CHECKSUMS, f"lists {name} and {LIBRARY_FILE}")
    for name in (*FILES, *of_network):
        if name not in sums:
            raise damaged(folder, CHECKSUMS, f"does not list {name}")
    return sums


def version_file(path: str) -> tuple[int, str] | None:
    """Return the version and the name of a file in a version's folder; None for other paths."""
    match = _OF_VERSION.fullmatch(path)
    return None if match is None else (int(match[1]), match[2])


def check_listing(folder: Path, sums: Mapping[str, str], *, own: bool = False) -> None:
    """Raise ``DamagedArtifactError`` unless exactly the listed files are there, ``StorageError``
    if that cannot be told.

    Whatever kind of thing is not listed: who serves a folder serves all of it, and nobody said what
    it is. Only an empty folder of a version is let be, as an interruption leaves one. ``own``: the
    bundle was written here, and what is not listed can be removed.
    """
    try:
        present = set(_walk(folder, own=own)) - {CHECKSUMS}
    except OSError as error:
        raise storage_error(error, "read", folder) from error
    for path in sorted(sums.keys() - present):
        raise damaged(folder, path, "is missing")
    for path in sorted(present - sums.keys()):
        raise _unlisted(folder, path, "is", own=own)


def _walk(folder: Path, *, own: bool) -> Iterator[str]:
    """Yield the files of a bundle: in it, and in the folders of its models."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            mode = entry.stat(follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                yield entry.name
            elif entry.name.isdecimal():
                yield from (f"{entry.name}/{name}" for name in sorted(os.listdir(entry.path)))
            else:
                raise _unlisted(folder, entry.name, "is a folder", own=own)


def _unlisted(folder: Path, path: str, what: str, *, own: bool) -> DamagedArtifactError:
    error = damaged(folder, path, f"{what} not listed in {CHECKSUMS}", remove=own)
    if not own:
        error.hint = f"move it out, notes can lie in {folder.parent}; or {HINT}"
    return error


def damaged(folder: Path, name: str, problem: str, *, remove: bool = False) -> DamagedArtifactError:
    """Return the error that names a bundle's file; ``remove`` is what its hint then advises."""
    hint = f"remove {folder / name}, then write the bundle again" if remove else HINT
    return DamagedArtifactError(f"{folder}: {name}: {problem}", hint=hint)
