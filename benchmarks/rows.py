"""Files of rows, a line of JSON each, to which several processes may add."""

import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_row(path: Path, row: Mapping[str, Any], same: Sequence[str] = ()) -> None:
    """Add a row, unless there is one that has the same values of the keys ``same``."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = rows_of(path) if same else []
        if not any(all(one.get(key) == row[key] for key in same) for one in before):
            file.write(json.dumps(row) + "\n")


def own_part(waiting: Sequence[T], part: int, parts: int) -> Sequence[T]:
    """Return what one of several processes does first of what is waiting; all where it has none."""
    return [one for index, one in enumerate(waiting) if index % parts == part] or waiting
