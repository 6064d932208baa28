"""Manifests: a table that names the image files of a data set, their classes and their parts.

CSV (RFC 4180, UTF-8, with a header) or Parquet, with the columns ``path``, ``label`` and, where the
parts are given, ``split``. Paths are relative to the manifest's folder, which they must not leave.
"""

import csv
import errno
import os
import posixpath
import stat
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..errors import ConfigError, StorageError
from .faults import MAX_TOLD, Faults, shown
from .folders import IRREGULAR, SPLITS, FolderListing, check_link, checked_classes

_SUFFIXES = (".csv", ".parquet")
_COLUMNS = ("path", "label", "split")
_FORM = "columns path,label or path,label,split, named in the first line, divided by commas"
_SPLITS_HINT = f"split is one of {', '.join(SPLITS)}, in every row; or leave the column out"
_PARQUET_ERRORS = (OSError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError)
"""What pyarrow raises for files of another kind, and damaged ones."""
_MAX_LABEL_BYTES = 255
"""As of a folder's name, which a label may become."""
_MAX_VALUE_BYTES = 4096
"""In Parquet, where a few bytes can stand for long text in every row: a path's limit on Linux."""
_BATCH_ROWS = 8192


class _Row(NamedTuple):
    number: int
    path: str
    label: str
    split: str | None
    """None where there is no such column."""


def is_manifest(path: Path) -> bool:
    """Tell by its name whether a path is that of a manifest, and no folder's."""
    return path.suffix.lower() in _SUFFIXES and not os.path.isdir(path)


def read_manifest(manifest: Path) -> FolderListing:
    """List the images that a manifest names; the root is its folder.

    Classes are sorted by name, images by class and path, as ``find_images`` does; a file of any
    suffix counts. Rows that repeat another and further columns are told in ``remarks``.

    Raises ``ConfigError`` for a file that is no such table, and for all of these at once: invalid
    rows (a path outside the manifest's folder or without a file, a label that is empty, one path
    with two labels or in two parts), links as ``find_images`` refuses them, and what
    ``checked_classes`` refuses. ``StorageError`` where something cannot be read.
    """
    if not os.path.isfile(manifest):  # of a pipe, reading would not end
        raise ConfigError(f"{shown(manifest)}: no such file", hint="--data-root names the manifest")
    names, rows = _table(manifest)
    search = _Search(manifest, names)
    for row in rows:
        search.add(row)
    search.faults.raise_any()  # of classes of which rows are faulty, no more is to be told
    if not search.seen:
        raise ConfigError(f"{shown(manifest)}: no rows", hint=_FORM)
    if "split" in names and "train" not in search.parts:
        raise ConfigError(f"{shown(manifest)}: no row of split train", hint=_SPLITS_HINT)
    parts = {
        part: {name: sorted(paths) for name, paths in classes.items()}
        for part, classes in search.parts.items()
    }
    what = shown(manifest.name)
    listing = checked_classes(
        manifest.parent,
        parts,
        search.faults,
        layout=f"labels of {what}: two or more, each of them in training rows",
        remedy=f"add rows to {what}, or leave the class out",
    )
    return replace(listing, from_manifest=True, remarks=tuple(search.remarks()))


class _Search:
    """One walk through the rows: the images of each part and class, and what is wrong."""

    def __init__(self, manifest: Path, names: Sequence[str]) -> None:
        self.name = shown(manifest.name)
        self.root = manifest.parent
        self._unit = "row" if _is_parquet(manifest) else "line"
        self.faults = Faults(self.root)
        self.parts: defaultdict[str, defaultdict[str, list[str]]]
        self.parts = defaultdict(lambda: defaultdict(list))
        self.seen: dict[str, _Row] = {}
        self._real_root = self.root.resolve()
        self._roots = {f"{os.path.abspath(self.root)}/", f"{self._real_root}/"}
        self._folders: dict[str, bool] = {}
        self._labels: dict[str, str | None] = {}
        self._repeated = 0
        self._others = [name for name in names if name not in _COLUMNS]

    def add(self, row: _Row) -> None:
        """Note the image of a row, or what is wrong with it."""
        path = self._relative(row)
        if path is None or not self._is_valid(row):
            return
        first = self.seen.setdefault(path, row)
        if first is not row:
            self._repeat(first, row)
        elif self._is_file(path, row):
            self.parts[row.split or ""][row.label].append(path)

    def remarks(self) -> Iterator[str]:
        """Yield what is not used."""
        if self._others:
            told = ", ".join(map(shown, self._others[:MAX_TOLD]))
            yield f"columns of {self.name} that are not read: {len(self._others)} ({told})"
        if self._repeated:
            yield f"rows of {self.name} that repeat another, used once: {self._repeated}"

    def _where(self, row: _Row) -> str:
        return f"{self._unit} {row.number}"

    def _invalid(self, row: _Row, reason: str, hint: str) -> None:
        self.faults.add("invalid rows", f"{self.name} {self._where(row)}: {reason}", hint)

    def _relative(self, row: _Row) -> str | None:
        """Return a row's path below the root without detours; None for one that cannot be."""
        path = row.path
        for root in self._roots:
            if path.startswith(root):
                path = path.removeprefix(root)
                break
        steps = path.split("/")
        if not path.strip("./") or "\0" in path:
            self._invalid(row, f"path {shown(repr(row.path))} names no file", _FORM)
        elif path.startswith("/") or ".." in steps:
            hint = f"paths are relative to {shown(self.root)}, and stay in it"
            self._invalid(row, f"path {shown(row.path)} leaves the manifest's folder", hint)
        else:
            return posixpath.normpath(path)
        return None

    def _is_valid(self, row: _Row) -> bool:
        if row.label not in self._labels:
            self._labels[row.label] = _fault_of_label(row.label)
        if reason := self._labels[row.label]:
            self._invalid(row, reason, "repair the labels")
            return False
        if row.split is not None and row.split not in SPLITS:
            self._invalid(row, f"split {shown(repr(row.split))} is not supported", _SPLITS_HINT)
            return False
        return True

    def _repeat(self, first: _Row, row: _Row) -> None:
        path, hint = shown(row.path), "keep one row of each image"
        if first.label != row.label:
            reason = (
                f"{path} is {shown(row.label)}, and {shown(first.label)} in {self._where(first)}"
            )
            self._invalid(row, reason, hint)
        elif first.split != row.split:
            reason = f"{path} is in {row.split}, and in {first.split} in {self._where(first)}"
            self._invalid(row, reason, hint)
        else:
            self._repeated += 1

    def _is_file(self, path: str, row: _Row) -> bool:
        """Whether there is a file; what is there in its place is noted."""
        place = os.path.join(self.root, path)  # a Path costs more than the look at the file
        try:
            if not self._is_plain_folder(posixpath.dirname(path)):
                reason = f"a link in the path ({self.name} {self._where(row)})"
                self.faults.add("links", reason, "put the folder itself there", path=path)
                return False
            mode = os.lstat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):
            hint = f"paths are relative to {shown(self.root)}"
            if "\\" in path:
                hint += ", with forward slashes"
            self.faults.add(
                "missing files", f"no such file ({self.name} {self._where(row)})", hint, path=path
            )
            return False
        except ValueError:
            self._invalid(
                row, f"path {shown(path)} cannot be a file's name here", "set PYTHONUTF8=1"
            )
            return False
        except OSError as error:
            raise StorageError(f"{shown(place)}: {error.strerror or error}") from error
        if stat.S_ISLNK(mode):
            check_link(path, self.root, self._real_root, self.faults)
        elif not stat.S_ISREG(mode):
            self.faults.add(*IRREGULAR, path=path)
        return True

    def _is_plain_folder(self, folder: str) -> bool:
        """Whether no step from the root to a folder is a link."""
        if folder not in self._folders:
            try:
                real = (self.root / folder).resolve(strict=True)
                self._folders[folder] = real == self._real_root / folder
            except (OSError, RuntimeError) as error:  # links in a circle: the second up to 3.12
                if isinstance(error, OSError) and error.errno != errno.ELOOP:
                    raise
                self._folders[folder] = False
        return self._folders[folder]


def _fault_of_label(label: str) -> str | None:
    told = shown(repr(label[:_MAX_LABEL_BYTES]))
    if not label.strip():
        return "label is empty"
    if label != label.strip():
        return f"label {told} begins or ends with a space"
    if not label.isprintable() or len(label.encode()) > _MAX_LABEL_BYTES:
        return f"label {told} is no printable text of at most {_MAX_LABEL_BYTES} bytes"
    return None


def _table(manifest: Path) -> tuple[list[str], Iterator[_Row]]:
    """Return the names of a manifest's columns, and its rows."""
    if _is_parquet(manifest):
        return _parquet_table(manifest)
    rows = _csv_rows(manifest)
    _, names = next(rows, (0, []))
    _check_names(manifest, names)
    return names, _csv_table(manifest, names, rows)


def _is_parquet(manifest: Path) -> bool:
    return manifest.suffix.lower() == ".parquet"


def _row(number: int, path: str, label: str, split: str | None = None) -> _Row:
    """Return a row that shares its label and split with others of the same."""
    return _Row(number, path, sys.intern(label), None if split is None else sys.intern(split))


def _csv_table(
    manifest: Path, names: Sequence[str], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[_Row]:
    places = [names.index(name) for name in _COLUMNS if name in names]
    for number, fields in rows:
        if len(fields) != len(names):
            raise ConfigError(
                f"{shown(manifest)}: line {number} has {len(fields)} fields, not {len(names)}",
                hint='a field with a comma in it stands in quotes: "a,b.png"',
            )
        yield _row(number, *(fields[place] for place in places))


def _csv_rows(manifest: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line where each row ends, and its fields, header first, without empty lines."""
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
    except OSError as error:
        raise StorageError(f"{shown(manifest)}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        hint = "save it as CSV in UTF-8"
        raise ConfigError(f"{shown(manifest)}: not UTF-8 ({error.reason})", hint=hint) from None
    except csv.Error as error:
        where = f"line {reader.line_num}"
        raise ConfigError(
            f"{shown(manifest)}: {where}: invalid CSV ({error})", hint=_FORM
        ) from None


def _check_names(manifest: Path, names: Sequence[str]) -> None:
    missing = [name for name in _COLUMNS[:2] if name not in names]
    twice = [name for name, count in Counter(names).items() if count > 1 and name in _COLUMNS]
    if missing:
        told = shown(", ".join(map(repr, names[:MAX_TOLD])))[:200]
        reason = f"no column {' and no column '.join(missing)}, but {told or 'nothing'}"
        raise ConfigError(f"{shown(manifest)}: {reason}", hint=_FORM)
    if twice:
        raise ConfigError(f"{shown(manifest)}: two columns {twice[0]}", hint=_FORM)


def _parquet_table(manifest: Path) -> tuple[list[str], Iterator[_Row]]:
    parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(manifest)
    except PermissionError as error:
        raise StorageError(f"{shown(manifest)}: {error.strerror or error}") from error
    except _PARQUET_ERRORS as error:
        raise _no_parquet(manifest, error) from None
    names = list(file.schema_arrow.names)
    _check_names(manifest, names)
    columns = [name for name in _COLUMNS if name in names]
    texts = [name for name in columns if _is_text(manifest, file.schema_arrow.field(name))]
    return names, _parquet_rows(manifest, columns, texts)


def _is_text(manifest: Path, field: Any) -> bool:
    """Whether a column holds text; False for integers, and where it holds nothing. Raises
    ``ConfigError`` for other types.
    """
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return True
    if types.is_integer(kind) or types.is_null(kind):
        return False
    raise ConfigError(
        f"{shown(manifest)}: column {field.name} holds {shown(str(kind))[:100]}, no text",
        hint="store path, label and split as text",
    )


def _parquet_rows(manifest: Path, columns: Sequence[str], texts: Sequence[str]) -> Iterator[_Row]:
    """Yield the rows; ``texts`` are the columns of text, read as dictionaries, whose entries are
    measured before rows repeat them.
    """
    number = 0
    try:
        file = _pyarrow().ParquetFile(manifest, read_dictionary=texts)
        for index in range(file.num_row_groups):
            _check_group(manifest, file.metadata.row_group(index), columns)
            # By groups: else the dictionary of each batch holds the texts of all before it.
            batches = file.iter_batches(_BATCH_ROWS, row_groups=[index], columns=list(columns))
            for batch in batches:
                values = [_values(manifest, name, batch.column(name)) for name in columns]
                for row in zip(*values, strict=True):
                    number += 1
                    yield _row(number, *row)
    except _PARQUET_ERRORS as error:
        raise _no_parquet(manifest, error) from None


def _check_group(manifest: Path, group: Any, columns: Sequence[str]) -> None:
    """Raise ``ConfigError`` where a column's size, as the file says it, is that of long values."""
    for chunk in map(group.column, range(group.num_columns)):
        name, most = chunk.path_in_schema, max(1, chunk.num_values) * _MAX_VALUE_BYTES
        if name in columns and chunk.total_uncompressed_size > most:
            raise _too_long(manifest, name)


def _values(manifest: Path, name: str, column: Any) -> list[str]:
    """Return a column's values as a CSV would hold them."""
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        longest = compute.max(compute.binary_length(column.dictionary)).as_py()
        if longest is not None and longest > _MAX_VALUE_BYTES:
            raise _too_long(manifest, name)
        column = column.dictionary_decode()
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _too_long(manifest: Path, name: str) -> ConfigError:
    return ConfigError(
        f"{shown(manifest)}: column {name} has values of more than {_MAX_VALUE_BYTES} bytes",
        hint="path, label and split are short texts",
    )


def _no_parquet(manifest: Path, error: Exception) -> ConfigError:
    reason = shown(str(error).partition("\n")[0])[:200]
    return ConfigError(f"{shown(manifest)}: invalid Parquet ({reason})", hint="write it again")


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "a manifest in Parquet needs pyarrow, which is missing",
            hint="pip install '.[parquet]' in the clone, or save the table as CSV",
        ) from None
    found: ModuleType = pyarrow.parquet
    return found
