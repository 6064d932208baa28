"""The bundle: ``exported/`` is a Triton model repository, with what a person needs beside it.

``<name>/config.pbtxt``, ``labels.txt`` and ``<n>/model.onnx`` are what a server reads. A version's
folder ``<n>`` holds all that belongs to it (``VERSION_FILES``); the bundle itself the same files of
the version that ``config.pbtxt`` serves, and what is for people. Everything is a function of
stored versions, so a missing or damaged bundle is written again without running a stage.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from d2nas.errors import DamagedArtifactError, StorageError, one_line
from d2nas.files.strict_json import parse_json
from d2nas.files.verified_folder import read_plain_file

from ..gate.golden import PICTURE_FILE
from ..gate.report import Report
from ..onnx_io import LIBRARY_FILE, MODEL_FILE
from ..onnx_io.model_file import MAX_MODEL_BYTES
from ..onnx_io.preparation import read_prepared
from ..report.baselines import BASELINES_FILE
from ..store import FileSystem, Version, safe_run_name
from ..store.forms import damage_of, read_form
from ..store.fsio import TEMPORARY_PREFIX, is_there, storage_error
from ..store.layout import names_in
from ..store.locks import bundle_lock
from .checksums import (
    CHECKSUMS,
    MAX_CHECKSUM_BYTES,
    OF_CELLS,
    VERSION_FILES,
    check_listing,
    version_file,
)
from .documents import (
    CARD,
    CONFIG,
    MANIFESTS,
    PAGE,
    STAGE_DRAWINGS,
    write_card,
    write_config,
    write_page,
    writer,
)
from .preprocess_file import CODE_FILE, preprocess_code


def write_bundle(
    exported: Path,
    name: str,
    versions: dict[str, Version],
    file_system: FileSystem | None = None,
    *,
    baselines: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write or repair ``exported/name`` from a validated run's versions; returns its folder.

    ``baselines`` are rows of other runs (``report.baselines``) that the report shows beside it.

    The same model keeps its number, a new one gets the next. Files that are right already are not
    touched. Raises ``BusyError`` where another process keeps writing it, ``StorageError``, and
    ``DamagedArtifactError`` where a reader would refuse the bundle for what else lies there.
    """
    disk = file_system or FileSystem()
    exported = exported.absolute()
    disk.make_folder(exported)
    with bundle_lock(exported, safe_run_name(name)):
        return _write(exported / name, name, versions, disk, baselines)


def check_place(exported: Path, name: str, file_system: FileSystem | None = None) -> None:
    """Raise where ``write_bundle`` could not write ``exported/name``, before what takes long.

    ``StorageError`` or ``DamagedArtifactError``. Nothing is written that stays.
    """
    disk = file_system or FileSystem()
    exported = exported.absolute()
    folder = exported / safe_run_name(name)
    disk.try_writing(exported)
    if not is_there(folder):
        return
    _refuse_links(folder)
    # Not tried by writing: a reader refuses a bundle with a file that is not listed.
    for part in (folder, *_number_folders(folder)):
        if not os.access(part, os.W_OK | os.X_OK):
            error = OSError(errno.EACCES, os.strerror(errno.EACCES))
            raise storage_error(error, "write in", part)


def _write(
    folder: Path,
    name: str,
    versions: dict[str, Version],
    disk: FileSystem,
    baselines: Sequence[Mapping[str, Any]],
) -> Path:
    model = versions["export"].read(MODEL_FILE)
    _refuse_links(folder)
    _remove_half_written(disk, folder)
    number = _number_of(folder, hashlib.sha256(model).hexdigest())
    disk.make_folder(folder / str(number))
    validated = versions["validate"]
    with damage_of(f"{validated.path}: report.json", validated.content.hint):
        documents = _documents(name, number, versions)
        if baselines:
            documents[BASELINES_FILE] = _pretty(list(baselines))
        page = _page(name, number, versions, {f"{number}/{MODEL_FILE}": model, **documents})
    files = {
        # The model first: by it an interrupted version is known again.
        f"{number}/{MODEL_FILE}": model,
        **{f"{number}/{path}": documents[path] for path in VERSION_FILES if path in documents},
        **documents,
        PAGE: page,
    }
    sums = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    for path, data in files.items():
        _put(disk, folder / path, data)
    # Other versions stay listed as they were when they were written.
    others = {p: d for p, d in _version_files(folder).items() if not p.startswith(f"{number}/")}
    sums |= others
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items()))
    _put(disk, folder / CHECKSUMS, lines.encode())
    for path in {*OF_CELLS, LIBRARY_FILE, BASELINES_FILE} - files.keys():
        if is_there(folder / path):
            disk.remove_file(folder / path)  # of a version of another kind, or with baselines
    _check_other_versions(folder, others)
    check_listing(folder, sums, own=True)
    return folder


def _check_other_versions(folder: Path, sums: Mapping[str, str]) -> None:
    """Raise ``DamagedArtifactError`` for a file of another version that is not what is listed.

    It would have every reader refuse the bundle, and nothing here says what it was made from.
    """
    for path, digest in sums.items():
        if _digest_of(folder / path) != digest:
            raise DamagedArtifactError(
                f"{folder}: {path}: its SHA-256 is not the one in {CHECKSUMS}",
                hint=f"remove {folder / path.split('/')[0]}, then write the bundle again",
            )


def _digest_of(path: Path) -> str:
    hint = f"remove {path}, then write the bundle again"
    data = read_plain_file(path, max_bytes=MAX_MODEL_BYTES, hint=hint, max_links=1)
    return hashlib.sha256(data).hexdigest()


def _number_of(folder: Path, digest: str) -> int:
    # Listed is also a model whose folder somebody removed: its number may be known elsewhere.
    known = {
        path: listed
        for path, listed in {**_listed(folder), **_version_files(folder)}.items()
        if path.endswith(f"/{MODEL_FILE}")
    }
    for path, listed in known.items():
        if listed == digest:
            return int(path.split("/")[0])
    taken = [int(path.split("/")[0]) for path in known]
    # Listed strictly: what is not seen for a moment would be written over.
    taken += [
        int(name) for name in names_in(folder) if name.isdecimal() and _holds_a_model(folder / name)
    ]
    return max(taken, default=0) + 1


def _holds_a_model(path: Path) -> bool:
    """Whether a number is taken; an interruption may leave its folder empty."""
    return is_there(path) and (not path.is_dir() or bool(names_in(path)))


def _version_files(folder: Path) -> dict[str, str]:
    """Return the digests of the files of all versions whose model is there: as they are listed,
    or as they are, since an interruption leaves a version between its files and the list.
    """
    listed, found = _listed(folder), {}
    for number in names_in(folder):
        # Listed strictly: what is not seen for a moment would be written over.
        if number.isdecimal() and is_there(folder / number / MODEL_FILE):
            for name in (MODEL_FILE, *VERSION_FILES):
                path = f"{number}/{name}"
                if is_there(folder / path):
                    found[path] = listed.get(path) or _digest_of(folder / path)
    return found


def _listed(folder: Path) -> dict[str, str]:
    """Return the digests of the versions' files as far as the list can be read."""
    path = folder / CHECKSUMS
    if not is_there(path):
        return {}
    try:
        content = read_plain_file(path, max_bytes=MAX_CHECKSUM_BYTES, max_links=1)
        lines = content.decode().splitlines()
    except (UnicodeDecodeError, DamagedArtifactError):
        return {}
    pairs = (line.partition("  ")[::2] for line in lines)
    return {path: digest for digest, path in pairs if version_file(path) and len(digest) == 64}


def _page(
    name: str, number: int, versions: Mapping[str, Version], files: Mapping[str, bytes]
) -> bytes:
    """Return the report for people, with the drawings of the versions behind it."""
    used = parse_json(files[MANIFESTS], what=MANIFESTS)
    drawings = {
        stage: versions[stage].read(drawing)
        for stage, drawing in STAGE_DRAWINGS.items()
        if stage in used and drawing in used[stage]["files"]
    }
    return write_page(name, number, files, drawings)


def _refuse_links(folder: Path) -> None:
    """Raise ``DamagedArtifactError`` for a link in the place of a folder that is written to: it
    could lead anywhere. ``exported`` itself may be one.
    """
    for path in (folder, *_number_folders(folder)):
        if path.is_symlink():
            raise DamagedArtifactError(
                f"{path}: is a symbolic link, and could lead out of {folder.parent}",
                hint="remove the link; the folder of all bundles may be elsewhere: --exported DIR",
            )


def _number_folders(folder: Path) -> Iterator[Path]:
    return (folder / name for name in names_in(folder) if name.isdecimal())


def _remove_half_written(disk: FileSystem, folder: Path) -> None:
    """Remove what an interruption left: a bundle with a file that nobody lists is refused."""
    for part in (folder, *filter(Path.is_dir, _number_folders(folder))):
        for name in names_in(part):
            if name.startswith(TEMPORARY_PREFIX):
                disk.remove_file(part / name)


def _put(disk: FileSystem, path: Path, data: bytes) -> None:
    # What readers refuse is put in order too: a link, a pipe, a file with a second name. None is
    # written through, since a new file takes its place.
    with suppress(DamagedArtifactError, StorageError):
        if read_plain_file(path, max_bytes=len(data), max_links=1) == data:
            return
    disk.replace_file(path, data)


def _documents(name: str, number: int, versions: dict[str, Version]) -> dict[str, bytes]:
    read_form(Report, versions["validate"], "report.json")
    report = parse_json(versions["validate"].read("report.json"), what="report.json")
    preprocess = read_prepared(versions["export"], MODEL_FILE)
    lineage = {**report["lineage"], "validate": versions["validate"].id}
    report |= {"bundle_version": number, "lineage": lineage, "written_by": writer()}
    labels = "".join(f"{one_line(label)}\n" for label in preprocess["class_names"])
    documents = {
        "labels.txt": labels.encode(),
        "preprocess.json": _pretty(preprocess),
        CODE_FILE: preprocess_code(),
        **{
            name: versions["derive"].read(name)
            for name in (LIBRARY_FILE, *OF_CELLS)
            if name in versions["derive"].manifest.files
        },
        "golden.safetensors": versions["validate"].read("golden.safetensors"),
        "report.json": _pretty(report),
        MANIFESTS: _pretty(_manifests(versions, lineage)),
    }
    if PICTURE_FILE in versions["validate"].manifest.files:  # not where it was validated earlier
        documents[PICTURE_FILE] = versions["validate"].read(PICTURE_FILE)
    return documents | {
        CONFIG: write_config(name, number, documents),
        CARD: write_card(name, number, documents),
    }


def _manifests(versions: Mapping[str, Version], lineage: Mapping[str, str]) -> dict[str, Any]:
    # A single stage may stand on versions of an earlier run; only its own parents belong here.
    return {
        stage: version.manifest.model_dump(by_alias=True)
        for stage, version in versions.items()
        if lineage.get(stage) == version.id
    }


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
